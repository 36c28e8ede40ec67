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


class Bilevel(tf.Module):
    """Max AUC_val(θ_λ, λ)  s.t.  θ_λ = argmin_θ Σ_k λ_k · L_k(θ)   (SuperMoE §3.3, eq. 9-10)

    The inner problem is one step of gradient descent, θ' = θ - η · Σ_k λ_k · ∇L_k(θ), the outer
    loss F the sum of the hinge surrogates F_k of each task's 1 - AUC. λ follow the `hypergradient`;
    the model then takes its step under λ, a constant there. Approximate are, beside the single
    inner step: ∇F is taken at θ, not θ' (first order: right as η → 0); and both gradients are by
    the last shared weights only (`shared_gradients.py`).

    Of one norm is what the step sees of every task, and what λ see of every F_k:

        λ_k = s_k · n̄ / n_k        F = Σ_k F_k / ‖∇F_k‖        n_k = ‖∇L_k‖, n̄ = Σ s·n / Σ s

    with shares s that start at the tasks' `weight` and keep their sum; s is what is learned, and to
    it norms are constants (they are of the step's length). A loss of one target a user has a larger
    gradient than one of many targets, most of it noise: without this it drowns the others, in the
    step and in F, before λ can tell.

    F is of an eighth of the training users, chosen by a hash (`batch["held_out"]`): rows that take
    turns would have been learnt by heart after an epoch, and couldn't tell a task that overfits.
    Of three epochs or more, the last third holds nobody out: s stay, but for the optimizer's
    momentum, and all labels are learned from. Where none of the rows held out has both labels of a
    task, nothing moves its share.
    """

    def __init__(self, spec: Spec):
        super().__init__(name="bilevel")
        self._spec = spec
        self.lambdas = Lambdas(spec, rate=3.0)

    def __call__(
        self, user_BKD: tf.Tensor, logits_of: LogitsOf, batch: Batch, step: tf.Tensor
    ) -> Weighted:
        del step
        trained_BK = trained_targets(batch)
        held_out_BK = batch["target_mask"] & ~trained_BK
        names = [task.name for task in self._spec.tasks]

        def losses_of(user_BKD: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = logits_of(user_BKD)
            losses, _ = task_losses(self._spec, logits, batch, trained_BK)
            outer = validation_losses(self._spec.tasks, logits, batch, held_out_BK)
            return losses | {_outer(name): value for name, value in outer.items()}

        losses, gradients_NP = shared_gradients(losses_of, user_BKD)
        gradients = dict(zip(losses, tf.unstack(gradients_NP), strict=True))
        inner_KP = tf.stack([gradients[name] for name in names])
        outer_KP = tf.stack([gradients[_outer(name)] for name in names])
        share_K = self.lambdas()
        lambda_K = balanced(tf.stop_gradient(share_K), tf.norm(inner_KP, axis=1))
        fixed = dict(zip(names, tf.unstack(lambda_K), strict=True))
        losses = {name: losses[name] for name in names}
        descent_K = hypergradient(tf.reduce_mean(_units(outer_KP), axis=0), _units(inner_KP), 1.0)
        # Its value means nothing, its gradient by the shares is `descent_K`, over what log s is
        # multiplied by: AdamW undoes it, but gradient clipping takes it together with the model's.
        outer = tf.reduce_sum(descent_K * (share_K - tf.stop_gradient(share_K)))
        outer /= self.lambdas.steepness
        total = weighted_total(losses, fixed) + share_of_same(outer)
        return Weighted(total, losses, {n: share_of_same(value) for n, value in fixed.items()})


def _outer(name: str) -> str:
    return f"{name}, held out"


def balanced(share_K: tf.Tensor, norm_K: tf.Tensor) -> tf.Tensor:
    """λ_k = s_k · n̄ / n_k, n̄ the mean of n by s, of the tasks that have a gradient; 0 of others.

    Args:
      share_K: float32, above 0.
      norm_K: n_k = ‖∇L_k‖, float32.
    """
    there_K = tf.where(norm_K > 0, share_K, 0.0)
    mean = tf.math.divide_no_nan(tf.reduce_sum(there_K * norm_K), tf.reduce_sum(there_K))
    return tf.math.divide_no_nan(there_K * mean, norm_K)


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


def validation_losses(
    tasks: Sequence[Task], logits: Mapping[str, tf.Tensor], batch: Batch, mask_BK: tf.Tensor
) -> dict[str, tf.Tensor]:
    """F_k of every task over the targets of `mask_BK`; this replica's shares.

    The hinge AUC of a binary task, and the loss of eq. 3 of others, which have no AUC.
    """
    losses = {}
    for task in tasks:
        given = logits[task.name], batch[task.label_feature], mask_BK
        binary = task.type == "binary"
        losses[task.name] = hinge_auc(*given) if binary else task_loss(task, *given)[0]
    return losses


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


def _units(x_NP: tf.Tensor) -> tf.Tensor:
    """Every row of norm 1, or 0."""
    return tf.math.divide_no_nan(x_NP, tf.norm(x_NP, axis=1, keepdims=True))
