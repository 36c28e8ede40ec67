"""Multi-channel feature projection (MFP): from channels to one vector an event. Eq. 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data import spec as spec_lib
from modules.embeddings import table as table_lib
from modules.embeddings.compressed import CompressedTable
from modules.embeddings.stacked import is_stackable, stacked_lookup
from modules.layers.norm import layer_norm


class FeatureProjection(keras.layers.Layer):
    """Concatenates every channel's vector, then projects, normalises and activates:

        y = dropout(gelu(LayerNorm(W · [s_category·w_category, s_ID·w_ID, s_dense] + b)))

    SuperMoE eq. 4 is the concatenation; the layer norm and the activation follow it there.
    The paper's `split` of the ID embeddings is where their tables live, not what is computed.

    - category, id: the row of the channel's table; multi-valued: the mean over its values
      (zeros if it has none).
    - dense: two inputs, the value (0 where missing) and whether it is missing.

    Hundreds of channels are few operations: the concatenation is of *groups*, each computed at
    once. All dense channels are one (their values, then their absences), and so are all
    single-valued channels with small tables of one width (`modules/embeddings/stacked.py`); every
    other channel is a group of its own. Groups, and channels in them, keep the channels' order.

    Args:
      channels: the channels to read, all of one scope.
      tables: table name -> table. Shared between projections and owned by the caller: this
        layer's variables and checkpoint don't include them.
      hidden_dim: D.
      dropout: rate, of the output.

    Raises:
      ValueError: no channels, or a channel's table isn't in `tables`.
    """

    def __init__(
        self,
        channels: Sequence[spec_lib.Channel],
        tables: Mapping[str, table_lib.EmbeddingTable | CompressedTable],
        hidden_dim: int,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        # Autocasting would squeeze dense values into float16 before they are cleaned.
        super().__init__(autocast=False, **kwargs)
        if not channels:
            raise ValueError(f"{self.name}: a feature projection needs at least one channel")
        for channel in channels:
            if channel.kind != "dense" and channel.table_name not in tables:
                raise ValueError(
                    f"{self.name}: channel {channel.feature!r} reads table "
                    f"{channel.table_name!r}, which isn't among {sorted(tables)}"
                )
        self.channels = tuple(channels)
        self._groups = _groups(channels, tables)
        self.hidden_dim = hidden_dim
        # Keras tracks what is in a dict, but not behind a method: the caller's copy is the one.
        self._table = dict(tables).__getitem__
        self.projection = keras.layers.Dense(hidden_dim, dtype=self.dtype_policy)
        self.norm = layer_norm(dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Projects features.

        Args:
          features: by `channel.feature`: int64 [...] row numbers (multi-valued [..., V]) or
            float32 [...] with NaN for missing; and a localized batch's own rows of the large
            tables (`rows_<table>`). Others are ignored.

        Returns:
          Compute dtype [..., D], the leading axes those of the features.

        Raises:
          KeyError: a channel's feature isn't there.
        """
        blocks = [self._block(group, features) for group in self._groups]
        concatenated = tf.concat(blocks, axis=-1)
        # As one matrix of events, because Keras' layer norm is built for one rank.
        flat = tf.reshape(concatenated, [-1, concatenated.shape[-1]])
        hidden = self.dropout(tf.nn.gelu(self.norm(self.projection(flat))), training=training)
        leading = tf.shape(concatenated)[:-1]
        y = tf.reshape(hidden, tf.concat([leading, [self.hidden_dim]], 0))
        return tf.ensure_shape(y, concatenated.shape[:-1] + [self.hidden_dim])

    def _block(
        self, group: tuple[spec_lib.Channel, ...], features: Mapping[str, tf.Tensor]
    ) -> tf.Tensor:
        """A group's part of the concatenation, compute dtype [..., width]."""
        first = group[0]
        if first.kind == "dense":
            values = tf.stack([features[c.feature] for c in group], axis=-1)
            missing = tf.math.is_nan(values)
            parts = (tf.where(missing, 0.0, values), missing)
            return tf.concat([tf.cast(part, self.compute_dtype) for part in parts], axis=-1)
        table = self._table(first.table_name)
        if _is_alone(first, table):
            values = features[first.feature]
            own_rows = features.get(table_lib.rows_key(first.table_name))
            rows = tf.cast(table(values, rows=own_rows), self.compute_dtype)
            return mean_of_values(rows, values) if first.multi_valued else rows
        ids = tf.stack([features[c.feature] for c in group], axis=-1)
        tables = [self._table(c.table_name) for c in group if c.kind != "dense"]
        found = stacked_lookup(tables, ids)
        found = tf.cast(found, self.compute_dtype)
        width = len(group) * table.dim
        block = tf.reshape(found, tf.concat([tf.shape(ids)[:-1], [width]], 0))
        return tf.ensure_shape(block, ids.shape[:-1] + [width])


def _is_alone(
    channel: spec_lib.CategoryChannel | spec_lib.IdChannel,
    table: table_lib.EmbeddingTable | CompressedTable,
) -> bool:
    return channel.multi_valued or not is_stackable(table)


def _groups(
    channels: Sequence[spec_lib.Channel],
    tables: Mapping[str, table_lib.EmbeddingTable | CompressedTable],
) -> list[tuple[spec_lib.Channel, ...]]:
    """Channels that are computed at once."""
    groups: dict[Any, list[spec_lib.Channel]] = {}
    for channel in channels:
        key: Any = "dense"
        if channel.kind != "dense":
            table = tables[channel.table_name]
            key = channel.feature if _is_alone(channel, table) else table.dim
        groups.setdefault(key, []).append(channel)
    return [tuple(group) for group in groups.values()]


def mean_of_values(rows: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Mean over a multi-valued channel's values, not counting padding.

    Args:
      rows: float [..., V, dim], zeros where `ids` is PAD.
      ids: int [..., V].

    Returns:
      [..., dim]; zeros where there is no value.
    """
    count = tf.reduce_sum(tf.cast(ids != table_lib.PAD, rows.dtype), axis=-1, keepdims=True)
    return tf.reduce_sum(rows, axis=-2) / tf.maximum(count, 1)
