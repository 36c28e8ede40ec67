"""What channels bring to a layer, side by side: in few operations, however many they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from data.channels import CategoryChannel, Channel, IdChannel
from modules.embeddings import table as table_lib
from modules.embeddings.compressed import CompressedTable
from modules.embeddings.stacked import is_stackable, stacked_lookup

Group = tuple[Channel, ...]
Tables = Mapping[str, table_lib.EmbeddingTable | CompressedTable]


class ChannelBlocks:
    """A block of numbers a *group* of channels, each group computed at once.

    - category, id: the row of the channel's table; multi-valued: the mean over its values
      (zeros if it has none).
    - dense: two numbers, the value (0 where missing) and whether it is missing.

    All dense channels are one group (their values, then their absences), and so are all
    single-valued channels with small tables of one width (`modules/embeddings/stacked.py`); every
    other channel is a group of its own. Groups, and channels in them, keep the channels' order.

    Args:
      channels: the channels to read, all of one scope.
      tables: table name -> table, owned by the caller: nothing here is a variable.
      reader: who asks, for the messages.

    Attributes:
      groups: in the order of the blocks.

    Raises:
      ValueError: no channels, or a channel's table isn't in `tables`.
    """

    def __init__(self, channels: Sequence[Channel], tables: Tables, reader: str):
        if not channels:
            raise ValueError(f"{reader}: at least one channel is needed")
        for channel in channels:
            if channel.kind != "dense" and channel.table_name not in tables:
                raise ValueError(
                    f"{reader}: channel {channel.feature!r} reads table "
                    f"{channel.table_name!r}, which isn't among {sorted(tables)}"
                )
        self.groups = _groups(channels, tables)
        self._tables = dict(tables)

    def __call__(self, features: Mapping[str, tf.Tensor], dtype: str | tf.DType) -> list[tf.Tensor]:
        """Args:
          features: by `channel.feature`: int64 [...] row numbers (multi-valued [..., V]) or
            float32 [...] with NaN for missing; and a localized batch's own rows of the large
            tables (`rows_<table>`). Others are ignored.

        Returns:
          Of each group, `dtype` [..., width].

        Raises:
          KeyError: a channel's feature isn't there.
        """
        return [self._block(group, features, dtype) for group in self.groups]

    def width(self, group: Group) -> int:
        """Of one channel's part of its group's block."""
        return 2 if group[0].kind == "dense" else self._tables[group[0].table_name].dim

    def _block(
        self, group: Group, features: Mapping[str, tf.Tensor], dtype: str | tf.DType
    ) -> tf.Tensor:
        first = group[0]
        if first.kind == "dense":
            values = tf.stack([features[c.feature] for c in group], axis=-1)
            missing = tf.math.is_nan(values)
            parts = (tf.where(missing, 0.0, values), missing)
            return tf.concat([tf.cast(part, dtype) for part in parts], axis=-1)
        table = self._tables[first.table_name]
        if _is_alone(first, table):
            values = features[first.feature]
            own_rows = features.get(table_lib.rows_key(first.table_name))
            rows = tf.cast(table(values, rows=own_rows), dtype)
            return mean_of_values(rows, values) if first.multi_valued else rows
        ids = tf.stack([features[c.feature] for c in group], axis=-1)
        tables = [self._tables[c.table_name] for c in group if c.kind != "dense"]
        found = tf.cast(stacked_lookup(tables, ids), dtype)
        width = len(group) * table.dim
        block = tf.reshape(found, tf.concat([tf.shape(ids)[:-1], [width]], 0))
        return tf.ensure_shape(block, ids.shape[:-1] + [width])


def _is_alone(
    channel: CategoryChannel | IdChannel,
    table: table_lib.EmbeddingTable | CompressedTable,
) -> bool:
    return channel.multi_valued or not is_stackable(table)


def _groups(channels: Sequence[Channel], tables: Tables) -> list[Group]:
    """Channels that are computed at once."""
    groups: dict[Any, list[Channel]] = {}
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
