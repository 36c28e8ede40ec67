"""λ that give every task a gradient of the same norm, larger for tasks that lag behind."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.objectives.task_loss import task_losses, weighted_total
from modules.objectives.weighting.lambdas import Lambdas
from modules.objectives.weighting.method import LogitsOf, Weighted
from modules.objectives.weighting.shared_gradients import shared_gradients
from modules.replicas import share_of_same, sum_over_replicas

_ASYMMETRY = 1.5
"""α: how much more a task gets that lags behind (the paper's value for real data)."""


class GradNorm(tf.Module):
    """λ descend Σ_k |λ_k · n_k - Ḡ · r_k^α| / Ḡ, n_k = ‖∇_W L_k‖, Ḡ the mean of λ_k · n_k.

    r_k is the loss ratio L_k / L_k(0) over its mean; L_k(0), the loss of logits 0 on this very
    batch (log 2, log classes, mean square: the paper allows log classes), needs no memory. Divided
    by Ḡ, so that the clipping of gradients leaves the model's alone. λ start at the tasks' `weight`
    and keep their sum. A task without labels in a batch isn't part of it.
    Reference: Chen et al., 2018 (GradNorm), eq. 2 and algorithm 1.
    """

    def __init__(self, spec: Spec):
        super().__init__(name="gradnorm")
        self._spec = spec
        self.lambdas = Lambdas(spec)

    def __call__(
        self, user_BKD: tf.Tensor, logits_of: LogitsOf, batch: Batch, step: tf.Tensor
    ) -> Weighted:
        del step
        mask_BK = batch["target_mask"]
        counts, untrained = {}, {}

        def losses_of(user_BKD: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = logits_of(user_BKD)
            losses, of_tasks = task_losses(self._spec, logits, batch, mask_BK)
            zeros = {name: tf.zeros_like(value) for name, value in logits.items()}
            counts.update(of_tasks)
            untrained.update(task_losses(self._spec, zeros, batch, mask_BK)[0])
            return losses

        losses, gradients_KP = shared_gradients(losses_of, user_BKD)
        lambda_K = self.lambdas()
        imbalance = gradient_imbalance(
            lambda_K,
            tf.norm(gradients_KP, axis=1),
            tf.math.divide_no_nan(_everywhere(losses), _everywhere(untrained)),
            tf.stack(list(counts.values())) > 0,
        )
        fixed = dict(zip(losses, tf.unstack(tf.stop_gradient(lambda_K)), strict=True))
        total = weighted_total(losses, fixed) + share_of_same(imbalance)
        return Weighted(total, losses, {n: share_of_same(value) for n, value in fixed.items()})


def gradient_imbalance(
    lambda_K: tf.Tensor, norm_K: tf.Tensor, ratio_K: tf.Tensor, labelled_K: tf.Tensor
) -> tf.Tensor:
    """L_grad / Ḡ (GradNorm eq. 2), a function of λ only.

    Args:
      lambda_K: float32.
      norm_K: n_k.
      ratio_K: L_k / L_k(0).
      labelled_K: bool, the tasks that take part.
    """
    part_K = tf.cast(labelled_K, tf.float32)
    count = tf.reduce_sum(part_K)

    def mean(x_K: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(tf.reduce_sum(part_K * x_K), count)

    norm_K, ratio_K = tf.stop_gradient(norm_K), tf.stop_gradient(ratio_K)
    average = tf.stop_gradient(mean(lambda_K * norm_K))
    rate_K = tf.math.divide_no_nan(ratio_K, mean(ratio_K)) ** _ASYMMETRY
    gap_K = tf.abs(lambda_K * norm_K - average * rate_K)
    return tf.math.divide_no_nan(tf.reduce_sum(part_K * gap_K), average)


def _everywhere(losses: dict[str, tf.Tensor]) -> tf.Tensor:
    return sum_over_replicas(tf.stop_gradient(tf.stack(list(losses.values()))))
