"""KEEP's pairwise part of a task's loss (eq. 2), which the pointwise part keeps calibrated."""

from __future__ import annotations

import tensorflow as tf

from modules.replicas import share_of_mean, sum_over_replicas


def pairwise_loss(logits_BK: tf.Tensor, labels_BK: tf.Tensor, mask_BK: tf.Tensor) -> tf.Tensor:
    """L^pair = mean over (u, i, j) of log(1 + exp(-(s_ui - s_uj)))   (KEEP eq. 2)

    i is a target of user u with label 1, j one with label 0, both in one instance: the paper takes
    them from one session. The mean instead of its sum, as L^point is one too (SuperMoE eq. 3), so
    that α (eq. 3) doesn't depend on the batch.

    Args:
      logits_BK: float [B, K].
      labels_BK: float32, 0 or 1; NaN: missing.
      mask_BK: bool, False for padding.

    Returns:
      float32 scalar, this replica's share; 0 (with zero gradients) where there is no pair.
    """
    logits_BK = tf.where(mask_BK, tf.cast(logits_BK, tf.float32), 0.0)
    positive_BK = mask_BK & tf.equal(labels_BK, 1.0)
    negative_BK = mask_BK & tf.equal(labels_BK, 0.0)
    pairs_BKK = tf.cast(positive_BK[:, :, tf.newaxis] & negative_BK[:, tf.newaxis], tf.float32)
    loss_BKK = tf.nn.softplus(logits_BK[:, tf.newaxis] - logits_BK[:, :, tf.newaxis])
    count = sum_over_replicas(tf.reduce_sum(pairs_BKK))
    return share_of_mean(tf.reduce_sum(pairs_BKK * loss_BKK), count)
