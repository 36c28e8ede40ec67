"""Batches of made-up instances, as large as a spec lets them be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from data.spec import Spec
from modules.embeddings.table import NUM_RESERVED, ids_key, rows_key
from modules.features import HELD_OUT, Batch, as_ragged, pad
from modules.models.tables import table_dim
from modules.training.input.localize import large_tables, localize
from modules.training.planning.size import BatchSize

_VALUES = 2
"""Of a multi-valued channel, in each event."""


def synthetic_batch(spec: Spec, rows: Mapping[str, int], size: BatchSize) -> Batch:
    """A padded, not localized batch (`modules.features.pad`) with ids uniform over all rows.

    So nearly every id of a large table is distinct: an upper bound of what real ones cost.
    """
    rng = np.random.default_rng(0)
    each = {"sequence": size.events, "candidate": size.targets, "context": 1}
    instances = {}

    def ragged(values: np.ndarray, per_instance: int) -> tf.RaggedTensor:
        lengths = np.full(size.instances, per_instance, np.int64)
        return tf.RaggedTensor.from_row_lengths(values, lengths)

    for channel in spec.channels:
        length = each[channel.scope]
        count = size.instances * length
        if channel.kind == "dense":
            floats = rng.normal(size=count).astype(np.float32)
            instances[channel.feature] = ragged(floats, length)
            continue
        if channel.multi_valued:
            counts = np.full(count, _VALUES, np.int64)
            instances[channel.count_feature] = ragged(counts, length)
            count, length = count * _VALUES, length * _VALUES
        values = rng.integers(NUM_RESERVED, rows[channel.table_name], count)
        instances[channel.feature] = ragged(values, length)
    targets = size.instances * size.targets
    positions = rng.integers(0, size.events + 1, targets)
    instances["target_position"] = ragged(positions, size.targets)
    for task in spec.tasks:
        labels = rng.integers(0, len(task.classes or "01"), targets).astype(np.float32)
        instances[task.label_feature] = ragged(labels, size.targets)
    batch = pad(as_ragged(instances, spec), spec)
    if HELD_OUT in batch:
        batch[HELD_OUT] = tf.range(size.instances) % 8 == 0  # the share that training has
    return batch


def with_empty_rows(batch: Batch, spec: Spec, rows: Mapping[str, int]) -> Batch:
    """Localized, and with zeros for the rows of large tables: what variables are built with."""
    tables = large_tables(spec, rows)
    batch = localize(batch, tables)
    shapes = {name: [tf.size(batch[ids_key(name)]), table_dim(spec, name)] for name in tables}
    return batch | {rows_key(name): tf.zeros(shape) for name, shape in shapes.items()}
