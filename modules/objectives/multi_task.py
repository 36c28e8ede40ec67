"""The fine-tuning objective: eq. 9 over eq. 3's losses (SuperMoE §3.3)."""

from __future__ import annotations

import tensorflow as tf

from modules.features import Batch
from modules.models.user_model import UserModel
from modules.objectives.router import router_loss, router_values
from modules.objectives.task_loss import task_loss, weighted_total


def multi_task_loss(model: UserModel, batch: Batch) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Eq. 9 with static λ over eq. 3's losses, plus the routers' losses.

    Returns:
      The loss, and what to record: `train/<task>/loss` and `expert_load` [MoE-FFNs, E].
    """
    spec = model.spec
    logits, aux = model(batch, training=True)
    losses = {
        task.name: task_loss(
            task, logits[task.name], batch[task.label_feature], batch["target_mask"]
        )[0]
        for task in spec.tasks
    }
    total = weighted_total(losses, {task.name: task.weight for task in spec.tasks})
    values = {f"train/{name}/loss": loss for name, loss in losses.items()}
    return total + router_loss(aux, spec.model), values | router_values(aux)
