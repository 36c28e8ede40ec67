"""λ of one step: what is left of the tasks' gradients once none works against another."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.objectives.task_loss import task_losses, weighted_total
from modules.objectives.weighting.method import LogitsOf, Weighted, Weighting
from modules.objectives.weighting.shared_gradients import shared_gradients
from modules.replicas import share_of_same


def pcgrad(spec: Spec) -> Weighting:
    """Every task's gradient, freed of what works against the others', summed.

    Projections only ever add multiples of the other gradients, so the result is Σ_k c_k · ∇L_k:
    c_k, found on the last shared weights, weigh the losses of this step, below and above H. They
    can't be told from λ and are recorded as such. Gradients are those of weight · L_k.
    Reference: Yu et al., 2020 (gradient surgery), algorithm 1.
    """

    def weigh(user_BKD: tf.Tensor, logits_of: LogitsOf, batch: Batch, step: tf.Tensor) -> Weighted:
        losses, gradients_KP = shared_gradients(
            lambda user_BKD: task_losses(spec, logits_of(user_BKD), batch, batch["target_mask"])[0],
            user_BKD,
        )
        weight_K = tf.constant([task.weight for task in spec.tasks])
        gradients_KP *= weight_K[:, tf.newaxis]
        gram_KK = tf.matmul(gradients_KP, gradients_KP, transpose_b=True)
        # The same on every replica.
        seed = tf.stack([tf.constant(spec.training.seed, tf.int64), tf.cast(step, tf.int64)])
        surgery_K = surgery(gram_KK, seed)
        lambdas = dict(zip(losses, tf.unstack(weight_K * surgery_K), strict=True))
        total = weighted_total(losses, lambdas)
        return Weighted(total, losses, {n: share_of_same(value) for n, value in lambdas.items()})

    return weigh


def surgery(gram_KK: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """c, such that Σ_i g_i^PC = Σ_k c_k · g_k.

    g_i^PC starts as g_i; for each other j, in an order of i's own drawn from `seed`:
    g_i^PC -= min(0, g_i^PC · g_j) / ‖g_j‖² · g_j. All of them in the span of the g: their inner
    products are all that is needed.

    Args:
      gram_KK: float32, g_i · g_j.
      seed: int [2].
    """
    num_tasks = gram_KK.shape[0]
    order_KK = tf.argsort(tf.random.stateless_uniform([num_tasks, num_tasks], seed))
    in_span_KK = tf.eye(num_tasks)  # row i: g_i^PC by the g
    for other_K in tf.unstack(order_KK, axis=1):
        along_K = tf.reduce_sum(in_span_KK * tf.gather(gram_KK, other_K), axis=1)
        square_K = tf.gather(tf.linalg.diag_part(gram_KK), other_K)
        against_K = tf.math.divide_no_nan(tf.minimum(along_K, 0.0), square_K)
        against_K = tf.where(tf.equal(other_K, tf.range(num_tasks)), 0.0, against_K)
        in_span_KK -= against_K[:, tf.newaxis] * tf.one_hot(other_K, num_tasks)
    return tf.reduce_sum(in_span_KK, axis=0)
