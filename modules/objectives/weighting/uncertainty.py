"""λ from each task's noise, which is learned."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.objectives.task_loss import task_losses, weighted_total
from modules.objectives.weighting.method import LogitsOf, Weighted
from modules.replicas import share_of_same


class Uncertainty(tf.Module):
    """Σ_k w_k · (c_k · exp(-s_k) · L_k + s_k / 2),  s_k = log σ_k², w_k the task's `weight`.

    c is 1 for cross-entropies and 1/2 for squared errors; at rest σ_k² = 2 · c_k · L_k. A task
    without labels in a batch says nothing about its noise.
    Reference: Kendall et al., 2018 (multi-task learning using uncertainty), eq. 7 and 10.
    """

    def __init__(self, spec: Spec):
        super().__init__(name="uncertainty")
        self._spec = spec
        self._rate = spec.training.finetune.weighting_rate or 1.0
        self.log_lambda = tf.Variable(lambda: tf.zeros([len(spec.tasks)]), name="log_lambda")

    def __call__(
        self, user_BKD: tf.Tensor, logits_of: LogitsOf, batch: Batch, step: tf.Tensor
    ) -> Weighted:
        del step
        losses, counts = task_losses(self._spec, logits_of(user_BKD), batch, batch["target_mask"])
        log_lambda_K = tf.unstack(self._rate * self.log_lambda)  # -s
        lambdas, noise = {}, []
        for task, log_lambda in zip(self._spec.tasks, log_lambda_K, strict=True):
            scale = 0.5 if task.type == "regression" else 1.0
            lambdas[task.name] = task.weight * scale * tf.exp(log_lambda)
            labelled = tf.cast(counts[task.name] > 0, tf.float32)
            noise.append(labelled * task.weight * -log_lambda / 2)
        total = weighted_total(losses, lambdas) + share_of_same(tf.add_n(noise))
        return Weighted(total, losses, {n: share_of_same(value) for n, value in lambdas.items()})
