"""Large tables as variables of a strategy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from data.channels import Dynamic
from modules.embeddings.dynamic import DynamicTable
from modules.embeddings.local_tables import LocalTables
from modules.embeddings.table import EmbeddingTable


def test_mirrored_rows_are_read_without_reading_the_table():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        table = EmbeddingTable(1000, 4, "t", large=True)
        tables = LocalTables({"t": table})

    @tf.function
    def rows(ids: tf.Tensor) -> tf.Tensor:
        return strategy.run(tables.gather, args=({"t": ids},))["t"]

    ids = tf.constant([3, 999], tf.int64)
    np.testing.assert_array_equal(rows(ids), tf.gather(table.shards[0].values[0], ids))
    graph = rows.get_concrete_function(ids).graph
    sizes = [out.shape.num_elements() or 0 for op in graph.get_operations() for out in op.outputs]
    assert max(sizes) < 1000, "a step would cost more the more rows the table has"


def test_a_frozen_table_is_restored_and_never_written(tmp_path):
    table, frozen = (EmbeddingTable(9, 4, "t", large=True, seed=seed) for seed in (0, 1))
    frozen.trainable = False
    ids, gradients = {"t": tf.constant([3, 7], tf.int64)}, {"t": tf.ones([2, 4])}
    before = table.shards[0].numpy()
    tables = LocalTables({"t": table})
    tables.update(ids, gradients, 0.1)
    (chunk,) = tables.save(str(tmp_path))["t"]["chunks"]
    trained = table.shards[0].numpy()
    assert not np.array_equal(trained, before)

    tables = LocalTables({"t": frozen})
    tables.restore({"t": [str(tmp_path / chunk)]})
    np.testing.assert_array_equal(tables.gather(ids)["t"], trained[[3, 7]])
    kept = frozen.shards[0].numpy()
    tables.update(ids, {}, 0.1)
    np.testing.assert_array_equal(frozen.shards[0].numpy(), kept)
    saved = tables.save(str(tmp_path))["t"]
    assert saved == {"num_rows": 9, "dim": 4, "shards": 1, "chunks": []}
    tables.end_save(True)


def test_a_frozen_dynamic_table_admits_nobody():
    sizes = Dynamic(capacity=8, tail_rows=8, admit_after=1)
    rows = DynamicTable(4, "t", sizes)
    table = EmbeddingTable(rows.num_rows, 4, "t", large=True, dynamic_rows=rows)
    keys = {"t": tf.constant([100, 200], tf.int64)}
    for trainable in (False, True):
        table.trainable = trainable
        slots = LocalTables({"t": table}).resolve(keys, tf.constant(1, tf.int64))["t"]
        assert (int(rows.statistics().admitted) > 0) == trainable
        assert (slots.numpy() < 3 + rows.capacity).any() == trainable
