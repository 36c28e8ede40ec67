"""Contrastive pre-training over two views of each user (Yao et al. 2021, "MTSSL").

"Self-supervised Learning for Large-scale Item Recommendations", arXiv:2007.12865: the views hide
complementary sets of features that say much the same (correlated feature masking, §3.2), so that
neither can be told from the other by a feature that both show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from data.channels import Channel
from data.spec import Spec
from modules.embeddings.table import NUM_RESERVED
from modules.features import Batch
from modules.objectives.masked_channels import replaced
from modules.objectives.router import router_loss, router_values
from modules.replicas import replica_id, share_of_mean, sum_over_replicas

_TEMPERATURE = 0.1
_BUCKETS = 16
"""Values of a channel that are told apart when its correlation with others is estimated."""


class ContrastiveViews(tf.Module):
    """InfoNCE between two views of a user's window. Nothing to learn beside the encoder.

    Of the paper this is the self-supervised part, as a phase of its own instead of a second loss
    beside the main one, and of users by what their windows hold, where the paper's views are of
    an item in a two-tower model; correlations are estimated on each batch instead of once on all
    data.

    Raises:
      ValueError: the encoder reads one channel only (the spec refuses it, too).
    """

    def __init__(self, spec: Spec, tables: Mapping):
        super().__init__()
        self._spec = spec
        self._channels = spec.scope("sequence") + spec.encoder_context
        if len(self._channels) < 2:
            raise ValueError("pre-train: two views of a user need two channels or more")

    def __call__(
        self, encoder: Any, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The loss, and `contrastive/accuracy`: users whose own other view is the nearest."""
        seed = tf.stack([tf.constant(self._spec.training.seed, tf.int64), step])
        seed = tf.random.experimental.stateless_fold_in(seed, replica_id())
        hidden_N = correlated_half(mutual_information(batch, self._channels), seed)
        one, two = (
            encoder(hide(batch, self._channels, hidden), training=training)
            for hidden in (hidden_N, ~hidden_N)
        )
        whole, aux = encoder.pooling.whole, one.aux + two.aux
        loss, accuracy = info_nce(
            whole(one.hidden, one.mask),
            whole(two.hidden, two.mask),
            tf.reduce_any(batch["sequence_mask"], axis=1),
        )
        values = {"contrastive/accuracy": accuracy}
        return loss + router_loss(aux, self._spec.model), values | router_values(aux)


def info_nce(
    z_BD: tf.Tensor, other_BD: tf.Tensor, valid_B: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """L = -1/|V| · Σ_{i∈V} log (exp(s_ii/τ) / Σ_{j∈V} exp(s_ij/τ)), s the cosine (eq. 1 there).

    Args:
      z_BD, other_BD: two views of each row, float.
      valid_B: V; other rows neither count nor serve as negatives.

    Returns:
      This replica's shares of the loss and of how often s_ii is a row's largest; the negatives are
      the replica's own rows.
    """
    z_BD, other_BD = (tf.math.l2_normalize(x, axis=-1) for x in (z_BD, other_BD))
    logits_BB = tf.matmul(z_BD, other_BD, transpose_b=True) / _TEMPERATURE
    logits_BB = tf.where(valid_B, logits_BB, logits_BB.dtype.min)
    own_B = tf.range(tf.shape(logits_BB)[0])
    loss_B = tf.nn.sparse_softmax_cross_entropy_with_logits(own_B, logits_BB)
    right_B = tf.equal(tf.argmax(logits_BB, axis=1, output_type=tf.int32), own_B)
    weight_B = tf.cast(valid_B, loss_B.dtype)
    count = sum_over_replicas(tf.reduce_sum(weight_B))
    shares = (tf.where(valid_B, loss_B, 0.0), weight_B * tf.cast(right_B, loss_B.dtype))
    loss, accuracy = (share_of_mean(tf.reduce_sum(share), count) for share in shares)
    return loss, accuracy


def mutual_information(batch: Batch, channels: Sequence[Channel]) -> tf.Tensor:
    """I(X_i; X_j) in nats between the channels over the batch's events, float32 [N, N].

    Values fall into 16 buckets, of a multi-valued channel the first one; context stands beside
    every event.
    """
    mask_BL = batch["sequence_mask"]
    buckets_T = [
        tf.boolean_mask(tf.broadcast_to(_bucket(channel, batch), tf.shape(mask_BL)), mask_BL)
        for channel in channels
    ]
    one_hot_TNV = tf.one_hot(tf.stack(buckets_T, axis=1), _BUCKETS)
    N = len(channels)
    flat_TM = tf.reshape(one_hot_TNV, [-1, N * _BUCKETS])
    num_events = tf.maximum(tf.cast(tf.shape(flat_TM)[0], tf.float32), 1.0)
    joint_MM = tf.matmul(flat_TM, flat_TM, transpose_a=True) / num_events
    alone_M = tf.reduce_sum(flat_TM, axis=0) / num_events
    independent_MM = alone_M[:, tf.newaxis] * alone_M
    ratio_MM = tf.where(joint_MM > 0, tf.math.divide_no_nan(joint_MM, independent_MM), 1.0)
    information_MM = joint_MM * tf.math.log(ratio_MM)
    blocks = tf.reshape(information_MM, [N, _BUCKETS, N, _BUCKETS])
    return tf.reduce_sum(blocks, axis=[1, 3])


def correlated_half(information_NN: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A channel drawn by `seed` and those most correlated with it, half of all: bool [N]."""
    N = information_NN.shape[0]
    drawn = tf.random.stateless_uniform([], seed, 0, N, tf.int32)
    closeness_N = tf.where(tf.range(N) == drawn, float("inf"), information_NN[drawn])
    nearest = tf.math.top_k(closeness_N, N // 2).indices
    return tf.reduce_any(tf.one_hot(nearest, N, on_value=True, off_value=False), axis=0)


def hide(batch: Batch, channels: Sequence[Channel], hidden_N: tf.Tensor) -> Batch:
    """The batch with the chosen channels masked at every place."""
    masked = dict(batch)
    for i, channel in enumerate(channels):
        values = batch[channel.feature]
        places = tf.shape(values)
        if getattr(channel, "multi_valued", False):
            places = places[:-1]
        position = tf.fill(places, hidden_N[i])
        masked[channel.feature] = replaced(channel, values, position)
    return masked


def _bucket(channel: Channel, batch: Batch) -> tf.Tensor:
    """int32 [B, L], or [B, 1] of context; missing values have a bucket of their own."""
    values = batch[channel.feature]
    if getattr(channel, "multi_valued", False):
        values = tf.pad(values, [[0, 0]] * (values.shape.rank - 1) + [[0, 1]])[..., 0]
    if channel.kind == "dense":
        steps = tf.math.floor(2.0 * tf.where(tf.math.is_nan(values), 0.0, values))
        bucket = tf.cast(tf.clip_by_value(steps, -7.0, 7.0), tf.int32) + 8
        bucket = tf.where(tf.math.is_nan(values), 0, bucket)
    else:
        real = tf.cast((values - NUM_RESERVED) % (_BUCKETS - 1), tf.int32) + 1
        bucket = tf.where(values < NUM_RESERVED, 0, real)
    return bucket[:, tf.newaxis] if channel.scope == "context" else bucket
