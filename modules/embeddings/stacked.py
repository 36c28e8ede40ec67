"""Many small tables looked up at once: hundreds of channels cost a graph few operations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from modules.embeddings.compressed import CompressedTable
from modules.embeddings.table import PAD, EmbeddingTable

MAX_ROWS = 1_024
"""Of a table that is stacked: it is copied in each step, and its gradient is as large as it is."""


def is_stackable(table: EmbeddingTable | CompressedTable) -> bool:
    """Whether a table's rows are one weight, and few."""
    return isinstance(table, EmbeddingTable) and not table.large and table.num_rows <= MAX_ROWS


def stacked_lookup(tables: Sequence[EmbeddingTable], ids: tf.Tensor) -> tf.Tensor:
    """Looks C tables of one width up in a single gather, whatever C is.

    Args:
      tables: one a channel, C in all; several channels may share one.
      ids: int [..., C], of each channel's table.

    Returns:
      float32 [..., C, dim]; zeros, without gradient, where `ids` is `PAD`.
    """
    distinct = list({id(table): table for table in tables}.values())
    starts = [0, *itertools.accumulate(table.num_rows for table in distinct)]
    start_of = {id(table): start for table, start in zip(distinct, starts, strict=False)}
    rows = tf.concat([table.rows for table in distinct], axis=0)
    found = _gather(rows, ids + tf.constant([start_of[id(t)] for t in tables], ids.dtype))
    return found * tf.cast(ids != PAD, found.dtype)[..., tf.newaxis]


@tf.custom_gradient
def _gather(rows: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`tf.gather` whose gradient is dense, so that the concatenation's is one split.

    Of a sparse one every table would have to pick its own ids out of all.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        flat = tf.reshape(upstream, [-1, rows.shape[1]])
        return tf.math.unsorted_segment_sum(flat, tf.reshape(ids, [-1]), tf.shape(rows)[0]), None

    return tf.gather(rows, ids), gradient
