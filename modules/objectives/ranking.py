"""Losses of what was taken above sampled negatives: BPR (PeterRec §3.3), and a sampled softmax."""

from __future__ import annotations

import tensorflow as tf

from modules.replicas import share_of_mean, sum_over_replicas


def bpr_loss(
    positive_BK: tf.Tensor, negative_BKN: tf.Tensor, counts_BK: tf.Tensor, counts_BKN: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """L = -mean over (u, y, y⁻) of log σ(o_y - o_y⁻)   (PeterRec eq. 8; Rendle et al. 2009)

    The mean instead of the sum, as of every task's loss; and y⁻ is given: our negatives are items
    of the batch (`negatives.py`), the paper's are drawn from all items but y.

    Args:
      positive_BK, negative_BKN: o, float32.
      counts_BK, counts_BKN: bool, the positives and the negatives that are real.

    Returns:
      The loss, this replica's share, 0 where there is no pair; and how many pairs there are over
      all replicas.
    """
    pairs_BKN = counts_BK[..., tf.newaxis] & counts_BKN
    margin_BKN = tf.where(pairs_BKN, positive_BK[..., tf.newaxis] - negative_BKN, 0.0)
    return _mean(tf.nn.softplus(-margin_BKN), pairs_BKN)


def softmax_loss(
    positive_BK: tf.Tensor, negative_BKN: tf.Tensor, counts_BK: tf.Tensor, counts_BKN: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """L = -mean over (u, y) of log p(y | u), p a softmax over y and its negatives

    Not PeterRec's, whose softmax (eq. 5) is over all labels and trained by cross-entropy; this is
    a sampled one, without a correction for how likely a negative was.

    Arguments and results as of `bpr_loss`; counted are positives that have a negative.
    """
    counts_BK &= tf.reduce_any(counts_BKN, axis=-1)
    # Before the loss, not after: the gradient of an unselected infinity is NaN.
    positive_BK = tf.where(counts_BK, positive_BK, 0.0)
    negative_BKN = tf.where(counts_BKN, negative_BKN, tf.float32.min)
    all_BKM = tf.concat([positive_BK[..., tf.newaxis], negative_BKN], axis=-1)
    return _mean(tf.reduce_logsumexp(all_BKM, axis=-1) - positive_BK, counts_BK)


RANKING_LOSSES = {"bpr": bpr_loss, "softmax": softmax_loss}
"""What a task's `loss` may name beside `pointwise`."""


def _mean(loss: tf.Tensor, counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    weight = tf.cast(counts, tf.float32)
    count = sum_over_replicas(tf.reduce_sum(weight))
    return share_of_mean(tf.reduce_sum(weight * loss), count), count
