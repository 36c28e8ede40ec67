"""Large tables as variables of a strategy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

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
