"""λ that raise the AUC on held-out rows: SuperMoE's bi-level optimisation (eq. 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from data.spec import Spec, Task
from modules.features import Batch, trained_targets
from modules.objectives.task_loss import task_loss, task_losses, weighted_total
from modules.objectives.weighting.lambdas import Lambdas
from modules.objectives.weighting.method import LogitsOf, Weighted
from modules.objectives.weighting.shared_gradients import shared_gradients
from modules.replicas import share_of_mean, share_of_same, sum_over_replicas

_VALIDATION = "validation loss"  # no task is called so


class Bilevel(tf.Module):
    """Max AUC_val(θ_λ, λ)  s.t.  θ_λ = argmin_θ Σ_k λ_k · L_k(θ)   (SuperMoE §3.3, eq. 9-10)

    The inner problem is one step of gradient descent, θ' = θ - η · Σ_k λ_k · ∇L_k(θ), the outer
    loss F = Σ_k F_k the hinge surrogate of each task's 1 - AUC. λ descends the
    `hypergradient`; the model then takes its step under λ, a constant there. λ start at the tasks'
    `weight` and keep their sum. Approximate are, beside the single inner step: ∇F is taken at θ,
    not θ' (first order: right as η → 0); and both gradients are by the last shared weights only
    (`shared_gradients.py`).

    F is of an eighth of the training users, chosen by a hash (`batch["held_out"]`), whose labels
    no weight is ever trained on: rows that take turns would have been learnt by heart after an
    epoch, and couldn't tell a task that overfits. That is what λ cost. Where none of them has
    both labels of a task, nothing moves its λ.
    """

    def __init__(self, spec: Spec):
        super().__init__(name="bilevel")
        self._spec = spec
        self.lambdas = Lambdas(spec)

    def __call__(
        self, user_BKD: tf.Tensor, logits_of: LogitsOf, batch: Batch, step: tf.Tensor
    ) -> Weighted:
        del step
        trained_BK = trained_targets(batch)
        held_out_BK = batch["target_mask"] & ~trained_BK

        def losses_of(user_BKD: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = logits_of(user_BKD)
            losses, _ = task_losses(self._spec, logits, batch, trained_BK)
            validation = validation_loss(self._spec.tasks, logits, batch, held_out_BK)
            return {_VALIDATION: validation} | losses

        losses, gradients_NP = shared_gradients(losses_of, user_BKD)
        losses = {task.name: losses[task.name] for task in self._spec.tasks}
        lambda_K = self.lambdas()
        # As unit vectors: the optimizer undoes any factor, but not what the clipping of a huge
        # gradient would do to the model's.
        descent_K = hypergradient(_unit(gradients_NP[0]), _unit(gradients_NP[1:]), 1.0)
        fixed = dict(zip(losses, tf.unstack(tf.stop_gradient(lambda_K)), strict=True))
        total = weighted_total(losses, fixed)
        # Its value means nothing, its gradient by λ is `descent_K`.
        outer = tf.reduce_sum(descent_K * (lambda_K - tf.stop_gradient(lambda_K)))
        lambdas = {n: share_of_same(value) for n, value in fixed.items()}
        return Weighted(total + share_of_same(outer), losses, lambdas)


def hypergradient(
    outer_P: tf.Tensor, inner_KP: tf.Tensor, learning_rate: float | tf.Tensor
) -> tf.Tensor:
    """dF(θ')/dλ_k = -η · ⟨∇F, ∇L_k(θ)⟩, θ' = θ - η · Σ_k λ_k · ∇L_k(θ).

    A task is worth more whose step is one that the held-out rows would have taken.

    Args:
      outer_P: ∇F; the equation has it at θ'.
      inner_KP: ∇L_k(θ).

    Returns:
      float32 [K].
    """
    return -learning_rate * tf.linalg.matvec(inner_KP, outer_P)


def validation_loss(
    tasks: Sequence[Task], logits: Mapping[str, tf.Tensor], batch: Batch, mask_BK: tf.Tensor
) -> tf.Tensor:
    """F = Σ_k F_k over the targets of `mask_BK`; this replica's share.

    F_k is the hinge AUC of a binary task, and the loss of eq. 3 of others, which have no AUC.
    """
    parts = []
    for task in tasks:
        given = logits[task.name], batch[task.label_feature], mask_BK
        parts.append(hinge_auc(*given) if task.type == "binary" else task_loss(task, *given)[0])
    return tf.add_n(parts)


def hinge_auc(logits_BK: tf.Tensor, labels_BK: tf.Tensor, mask_BK: tf.Tensor) -> tf.Tensor:
    """Mean over pairs of max(0, 1 - (f(x⁺) - f(x⁻))), the surrogate of 1 - AUC (SuperMoE §3.3).

    Args:
      logits_BK: f, float32.
      labels_BK: float32, 0 or 1; NaN: missing.
      mask_BK: bool, the targets that count.

    Returns:
      This replica's share, of the pairs within replicas; 0 without any.
    """
    positive_P = tf.boolean_mask(logits_BK, mask_BK & tf.equal(labels_BK, 1.0))
    negative_Q = tf.boolean_mask(logits_BK, mask_BK & tf.equal(labels_BK, 0.0))
    hinge_PQ = tf.nn.relu(1.0 - (positive_P[:, tf.newaxis] - negative_Q))
    num_pairs = sum_over_replicas(tf.cast(tf.size(hinge_PQ), tf.float32))
    return share_of_mean(tf.reduce_sum(hinge_PQ), num_pairs)


def _unit(x: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(x, tf.norm(x))
