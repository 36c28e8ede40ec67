"""λ from the spec."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.objectives.task_loss import task_losses, weighted_total
from modules.objectives.weighting.method import LogitsOf, Weighted, Weighting


def static(spec: Spec) -> Weighting:
    """λ_k is the task's `weight`."""
    weights = {task.name: task.weight for task in spec.tasks}

    def weigh(user_BKD: tf.Tensor, logits_of: LogitsOf, batch: Batch, step: tf.Tensor) -> Weighted:
        del step
        losses, _ = task_losses(spec, logits_of(user_BKD), batch, batch["target_mask"])
        return Weighted(weighted_total(losses, weights), losses, {})

    return weigh
