"""Large tables' ids -> positions in the batch's distinct ids; and a share of a batch's rows.

A batch of a large table's ids names few distinct rows. Those are fetched once, and the model
reads them by position, so that what is fetched and what is pushed back is [U, dim].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from data.spec import Spec
from modules.embeddings.table import NUM_RESERVED, ids_key, rows_key
from modules.features import Batch


def large_tables(spec: Spec, rows: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Tables that are `Spec.is_large` -> the features that read them.

    Args:
      rows: of every table, as `modules.preprocessing.table_rows` counts them.
    """
    return {
        table: tuple(channel.feature for channel in channels)
        for table, channels in spec.tables.items()
        if spec.is_large(table, rows[table])
    }


def localize(batch: Batch, tables: Mapping[str, Sequence[str]]) -> Batch:
    """Replaces the ids of each table's features by positions in the batch's distinct ids.

    Args:
      batch: features of the tables are int64, of any shape; others pass as they are.
      tables: table -> its features (`large_tables`).

    Returns:
      The batch, with `row_ids_<table>` int64 [U] for every table: distinct, the reserved rows
      first, so that PAD, MASK and MISSING are the same numbers before and after; and features
      such that gather(row_ids_<table>, feature) is the feature as it was.
    """
    localized = dict(batch)
    reserved = tf.range(NUM_RESERVED, dtype=tf.int64)
    for table, features in tables.items():
        ids = [tf.reshape(batch[feature], [-1]) for feature in features]
        distinct, positions = tf.unique(tf.concat([reserved, *ids], axis=0), out_idx=tf.int64)
        sizes = [NUM_RESERVED, *(tf.size(flat) for flat in ids)]
        parts = tf.split(positions, sizes)[1:]
        localized[ids_key(table)] = distinct
        for feature, part in zip(features, parts, strict=True):
            restored = tf.reshape(part, tf.shape(batch[feature]))
            restored.set_shape(batch[feature].shape)
            localized[feature] = restored
    return localized


def host_share(batch: Batch, index: int | tf.Tensor, count: int | tf.Tensor) -> Batch:
    """Instances index, index + count, … of a batch that isn't localized yet; may be none.

    Args:
      index, count: integers or integer scalars; the shares of 0 … count - 1 part the batch.
    """
    return {name: value[index::count] for name, value in batch.items()}


def replica_share(batch: Batch, index: int | tf.Tensor, count: int | tf.Tensor) -> Batch:
    """`host_share` of a localized batch: distinct ids and their rows are kept whole."""
    tables = ids_key(""), rows_key("")
    return {
        name: value if name.startswith(tables) else value[index::count]
        for name, value in batch.items()
    }
