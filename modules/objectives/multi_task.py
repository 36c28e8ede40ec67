"""The fine-tuning objective: eq. 9 over eq. 3's losses (SuperMoE §3.3)."""

from __future__ import annotations

import tensorflow as tf

from modules.features import Batch
from modules.models.user_model import UserModel
from modules.objectives.negatives import with_negatives
from modules.objectives.router import router_loss, router_values


def multi_task_loss(
    model: UserModel, batch: Batch, step: tf.Tensor | int = 0
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Eq. 9 over eq. 3's losses, λ as `training.finetune.weighting` finds them, plus the routers'
    losses, the heads' own, where they have one, and, weighted, that of a pre-training which is
    trained along (PeterRec's MTL).

    Returns:
      The loss, and what to record: `train/<task>/loss`, `lambda/<task>` unless static,
      `expert_load` [MoE-FFNs, E], and what the heads and the pre-training say of theirs.
    """
    step = tf.convert_to_tensor(step, tf.int64)
    if model.spec.training.finetune.negatives is not None:
        batch = with_negatives(batch, model.spec, step)
    user_BKD, outputs_of, aux = model.at_targets(batch, model.spec.tasks, training=True)
    outputs: dict[str, tf.Tensor] = {}

    def logits_of(user_BKD: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs.update(outputs_of(user_BKD))
        return outputs

    weighted = model.weighting(user_BKD, logits_of, batch, step)
    total = weighted.total + router_loss(aux, model.spec.model)
    values = {f"train/{name}/loss": loss for name, loss in weighted.losses.items()}
    values |= {f"lambda/{name}": value for name, value in weighted.lambdas.items()}
    values |= router_values(aux)
    if hasattr(model.heads, "auxiliary_loss"):
        loss, of_heads = model.heads.auxiliary_loss(outputs, batch)
        total, values = total + loss, of_heads | values
    if model.pretraining is not None:
        loss, of_pretraining = model.pretraining(model.encoder, batch, step)
        total += model.spec.training.finetune.pretraining_weight * loss
        values = of_pretraining | values
    return total, values
