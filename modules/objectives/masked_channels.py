"""Masked channel prediction (MCP): hide values of the chosen channels, predict them. Eq. 1-2."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from data.channels import Channel
from modules.embeddings import table as table_lib
from modules.embeddings.compressed import CompressedTable
from modules.embeddings.hashing import bucket
from modules.replicas import share_of_mean, sum_over_replicas

_MAX_COUNTERS = 2**20


class ChannelLoss(NamedTuple):
    """One channel's part of the objective, over its masked positions; float32 scalars.

    Loss and metric are this replica's shares, the count is over all (`modules/replicas.py`).
    """

    loss: tf.Tensor
    """Eq. 2; 0 if nothing is masked."""
    metric: tf.Tensor
    """category, id: accuracy (the best candidate is a true value); dense: mean absolute error."""
    count: tf.Tensor
    """|S_i|, masked positions."""


def mask_channels(
    features: Mapping[str, tf.Tensor],
    channels: Sequence[Channel],
    sequence_mask: tf.Tensor,
    rate: float,
    seed: tf.Tensor,
    whole_event_share: float = 0.0,
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Replaces values of the MCP channels by [MASK].

    Each value is chosen with probability `rate`, independently per channel and position, except
    that a share of them is chosen together: with probability `rate · whole_event_share` an
    event loses all of its MCP channels at once. The video is easily told from its author; only
    a wholly masked event must be predicted from the *other* events.

    Only what is there can be masked: never padding, never a missing value. A masked category or
    id becomes row MASK (multi-valued: MASK once, then PAD), a masked dense value NaN.

    Args:
      features: by `channel.feature`, as in a batch.
      channels: the spec's `mcp_channels`.
      sequence_mask: bool [B, L].
      rate: each channel's marginal probability, whatever the share.
      seed: int32 or int64 [2]; the same seed masks the same positions.
      whole_event_share: in [0, 1].

    Returns:
      All features, with those channels' masked; and by feature, bool [B, L], where.
    """
    shape = tf.shape(sequence_mask)
    together = rate * whole_event_share
    alone = (rate - together) / (1.0 - together) if together < 1.0 else 0.0

    def chosen(stream: int, probability: float) -> tf.Tensor:
        stream_seed = tf.random.experimental.stateless_fold_in(seed, stream)
        return tf.random.stateless_uniform(shape, stream_seed) < probability

    whole_event = chosen(0, together)
    masked, positions = dict(features), {}
    for stream, channel in enumerate(channels, start=1):
        values = features[channel.feature]
        position = (chosen(stream, alone) | whole_event) & sequence_mask
        position &= is_present(channel, values)
        positions[channel.feature] = position
        masked[channel.feature] = replaced(channel, values, position)
    return masked, positions


def is_present(channel: Channel, values: tf.Tensor) -> tf.Tensor:
    """bool [B, L]: a real value is there, neither padding nor missing."""
    if channel.kind == "dense":
        return ~tf.math.is_nan(values)
    real = values >= table_lib.NUM_RESERVED
    return tf.reduce_any(real, axis=-1) if channel.multi_valued else real


def replaced(channel: Channel, values: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """`values` with [MASK] (dense: NaN) where `position`, a bool of the channel's places."""
    if channel.kind == "dense":
        return tf.where(position, float("nan"), values)
    if not channel.multi_valued:
        return tf.where(position, tf.cast(table_lib.MASK, values.dtype), values)
    slot = tf.range(tf.shape(values)[-1])
    bag = tf.where(slot == 0, table_lib.MASK, table_lib.PAD)
    return tf.where(position[..., tf.newaxis], tf.cast(bag, values.dtype), values)


def mcp_loss(
    heads: Mapping[str, keras.layers.Layer],
    h_BLD: tf.Tensor,
    features: Mapping[str, tf.Tensor],
    positions: Mapping[str, tf.Tensor],
    training: bool = False,
) -> tuple[tf.Tensor, dict[str, ChannelLoss]]:
    """L_mcp = mean over channels i of L_i,  L_i = -1/|S_i| · Σ_{j∈S_i} log p(ŝ_j = s_j)

    SuperMoE eq. 1-2. (Eq. 2 as printed has two minus signs, which would maximise the loss.)
    A channel with nothing masked counts as 0.

    Args:
      heads: by `channel.feature`, from `build_heads`.
      h_BLD: what event j is predicted from, at j: the encoder's output, which hasn't seen what
        it predicts.
      features: the features as they are.
      positions: S_i, bool [B, L] by feature; `mask_channels` gives those it masked.

    Returns:
      The total, float32, and each channel's loss, metric and count by feature.
    """
    parts = {}
    for feature, head in heads.items():
        index_M2 = tf.where(positions[feature])
        h_MD = tf.gather_nd(h_BLD, index_M2)
        targets = tf.gather_nd(features[feature], index_M2)
        parts[feature] = head(h_MD, targets, features, training=training)
    return tf.reduce_mean(tf.stack([p.loss for p in parts.values()])), parts


def build_heads(
    channels: Sequence[Channel],
    tables: Mapping[str, table_lib.EmbeddingTable | CompressedTable],
) -> dict[str, keras.layers.Layer]:
    """A head per MCP channel, by feature: small tables are predicted by a full softmax; large and
    compressed ones, which have no list of all rows at hand, by a sampled one.

    Raises:
      ValueError: there is no channel to predict.
    """
    if not channels:
        raise ValueError(
            "pre-train: no channel has `mask_prediction: true`; mark the important ones, or"
            " skip the phase with `training.pretrain.epochs: 0`"
        )
    heads: dict[str, keras.layers.Layer] = {}
    for channel in channels:
        name = f"mcp_{channel.feature}"
        if channel.kind == "dense":
            heads[channel.feature] = DenseChannelHead(name=name)
            continue
        table = tables[channel.table_name]
        if isinstance(table, table_lib.EmbeddingTable) and not table.large:
            heads[channel.feature] = FullSoftmaxHead(table, name=name)
        else:
            heads[channel.feature] = SampledSoftmaxHead(table, name=name)
    return heads


def channel_values(prefix: str, parts: Mapping[str, ChannelLoss]) -> dict[str, tf.Tensor]:
    """What to record of every channel."""
    return {
        f"{prefix}/{name}/{what}": getattr(part, what)
        for name, part in parts.items()
        for what in ("loss", "metric")
    }


class FullSoftmaxHead(keras.layers.Layer):
    """p(v | h) = softmax over all rows of (W h + c) · row_v + bias_v.

    Weights are tied with the input: candidates are scored by the rows of their own table, which
    the caller owns (it isn't among this layer's variables). Reserved rows can't be predicted.
    A multi-valued target is a bag: its loss is the cross-entropy with the uniform distribution
    over its values, -mean_v log p(v). Computed in float32.
    """

    def __init__(self, table: table_lib.EmbeddingTable, **kwargs: Any):
        super().__init__(**kwargs, dtype="float32")
        self._rows = lambda: table.rows
        self.query = keras.layers.Dense(table.dim, dtype="float32")
        self.bias = self.add_weight("bias", (table.num_rows,), initializer="zeros")

    def call(
        self,
        h_MD: tf.Tensor,
        targets: tf.Tensor,
        features: Mapping[str, tf.Tensor] = types.MappingProxyType({}),
        training: bool = False,
    ) -> ChannelLoss:
        """float [M, D], int64 rows [M] or [M, V] (PAD: no value) -> ChannelLoss."""
        del features, training
        targets_MV = _as_bags(targets)
        real_MV = targets_MV >= table_lib.NUM_RESERVED
        return _bag_cross_entropy(self.scores(h_MD), targets_MV, real_MV)

    def scores(self, h_MD: tf.Tensor) -> tf.Tensor:
        """(W h + c) · row_v + bias_v of every row v, float32 [M, R]; the lowest for reserved."""
        reserved_R = tf.range(self.bias.shape[0]) < table_lib.NUM_RESERVED
        bias_R = tf.where(reserved_R, tf.float32.min, self.bias)
        return tf.matmul(self.query(h_MD), self._rows(), transpose_b=True) + bias_R


class SampledSoftmaxHead(keras.layers.Layer):
    """Softmax over the distinct values masked in this batch, for tables too large for all rows.

    A value u is a candidate with probability 1 - (1 - Q_u)^n, n draws a batch, so popular values
    would be punished for being popular; subtracting the log of that probability from the scores
    (logQ, as `tf.nn.sampled_softmax_loss` does) makes the full softmax the target again.
    Q is counted while training, starting from one of each: an integer a row, or a hashed one where
    a table has more than 2^20 rows (as the paper does) or its ids are keys. Every replica counts
    what it sees.

    Weights, bags and precision as in `FullSoftmaxHead`; no bias.
    Reference: Yi et al., 2019 (sampling-bias-corrected in-batch softmax).
    """

    def __init__(self, table: table_lib.EmbeddingTable | CompressedTable, **kwargs: Any):
        super().__init__(**kwargs, dtype="float32")
        self._table = lambda: table
        self._of_keys = getattr(table, "dynamic_rows", None) is not None
        self.query = keras.layers.Dense(table.dim, dtype="float32")
        counters = min(table.num_rows, _MAX_COUNTERS)
        self.counts = self._add_counter("counts", (counters,), tf.int32, 1)
        self.total = self._add_counter("total", (), tf.int64, counters)

    def _add_counter(
        self, name: str, shape: tuple[int, ...], dtype: tf.DType, start: int
    ) -> tf.Variable:
        return self.add_weight(
            name,
            shape,
            dtype=dtype,
            initializer=keras.initializers.Constant(start),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    def call(
        self,
        h_MD: tf.Tensor,
        targets: tf.Tensor,
        features: Mapping[str, tf.Tensor] = types.MappingProxyType({}),
        training: bool = False,
    ) -> ChannelLoss:
        """float [M, D], int64 rows [M] or [M, V] (PAD: no value) -> ChannelLoss.

        `features` of a localized batch hold the table's own rows, which `targets` then index.
        """
        table = self._table()
        own_rows = features.get(table_lib.rows_key(table.name))
        targets_MV = _as_bags(targets)
        valid_MV = targets_MV >= table_lib.NUM_RESERVED
        # PAD leads, so that there is a column (never a candidate) even if nothing is masked.
        drawn = tf.concat(
            [tf.cast([table_lib.PAD], targets_MV.dtype), tf.reshape(targets_MV, [-1])], 0
        )
        rows_U, column, times_U = tf.unique_with_counts(drawn)
        reserved_U = rows_U < table_lib.NUM_RESERVED
        times_U = tf.where(reserved_U, 0, times_U)
        if own_rows is None:
            candidates_UD, numbers_U = table.lookup(rows_U), rows_U
        else:
            candidates_UD = tf.gather(own_rows, rows_U)
            numbers_U = tf.gather(features[table_lib.ids_key(table.name)], rows_U)
        counters = self.counts.shape[0]
        counter_U = bucket(numbers_U, counters) if self._of_keys else numbers_U % counters
        if training:
            # Each replica's own: such variables have no `scatter_add` under MirroredStrategy.
            tf.raw_ops.ResourceScatterAdd(
                resource=self.counts.handle, indices=counter_U, updates=times_U
            )
            self.total.assign_add(tf.cast(tf.reduce_sum(times_U), tf.int64))
        log_q_U = self._log_inclusion(counter_U, tf.reduce_sum(times_U))
        offset_U = tf.where(reserved_U, tf.float32.min, -log_q_U)
        scores_MU = tf.matmul(self.query(h_MD), candidates_UD, transpose_b=True) + offset_U
        column_MV = tf.reshape(column[1:], tf.shape(targets_MV))
        return _bag_cross_entropy(scores_MU, column_MV, valid_MV)

    def _log_inclusion(self, counter_U: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """log(1 - (1 - Q)^draws), float32 [U]."""
        count_U = tf.cast(tf.gather(self.counts, counter_U), tf.float32)
        log_absent_U = tf.math.log1p(-count_U / tf.cast(self.total, tf.float32))
        return tf.math.log(-tf.math.expm1(tf.cast(tf.maximum(draws, 1), tf.float32) * log_absent_U))


class DenseChannelHead(keras.layers.Layer):
    """Predicts a dense channel's normalised value; Huber loss (δ = 1), so that tails don't rule."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs, dtype="float32")
        self.value = keras.layers.Dense(1, dtype="float32")

    def call(
        self,
        h_MD: tf.Tensor,
        targets_M: tf.Tensor,
        features: Mapping[str, tf.Tensor] = types.MappingProxyType({}),
        training: bool = False,
    ) -> ChannelLoss:
        """float [M, D], float32 [M] -> ChannelLoss."""
        del features, training
        error_M = tf.abs(tf.squeeze(self.value(h_MD), axis=-1) - targets_M)
        huber_M = tf.where(error_M <= 1.0, 0.5 * tf.square(error_M), error_M - 0.5)
        return mean_over_masked(huber_M, error_M)


def _as_bags(targets: tf.Tensor) -> tf.Tensor:
    """[M] or [M, V] -> [M, V]."""
    return targets[:, tf.newaxis] if targets.shape.rank == 1 else targets


def _bag_cross_entropy(
    scores_MC: tf.Tensor, labels_MV: tf.Tensor, valid_MV: tf.Tensor
) -> ChannelLoss:
    """Cross-entropy between softmax(scores) and the uniform distribution over a bag of columns."""
    if labels_MV.shape[-1] == 1:  # one fused kernel
        loss_M = tf.nn.sparse_softmax_cross_entropy_with_logits(labels_MV[:, 0], scores_MC)
    else:
        log_p_MV = tf.gather(tf.nn.log_softmax(scores_MC), labels_MV, batch_dims=1)
        weight_MV = tf.cast(valid_MV, tf.float32)
        bag_M = tf.reduce_sum(tf.where(valid_MV, log_p_MV, 0.0), axis=-1)
        loss_M = -tf.math.divide_no_nan(bag_M, tf.reduce_sum(weight_MV, axis=-1))
    best_M = tf.argmax(scores_MC, axis=-1, output_type=labels_MV.dtype)
    hit_M = tf.reduce_any((best_M[:, tf.newaxis] == labels_MV) & valid_MV, axis=-1)
    return mean_over_masked(loss_M, tf.cast(hit_M, tf.float32))


def mean_over_masked(loss_M: tf.Tensor, metric_M: tf.Tensor) -> ChannelLoss:
    """Means over the M positions of all replicas; float32 [M]."""
    count = sum_over_replicas(tf.cast(tf.shape(loss_M)[0], tf.float32))
    return ChannelLoss(
        loss=share_of_mean(tf.reduce_sum(loss_M), count),
        metric=share_of_mean(tf.reduce_sum(metric_M), count),
        count=count,
    )
