"""An embedding table: one row of floats per category value or id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf
import tf_keras as keras

from modules.embeddings import sharding
from modules.embeddings.initialization import initial_rows, table_seed
from modules.embeddings.shard import fill, shard_rows

if TYPE_CHECKING:  # it builds on this file
    from modules.embeddings.dynamic import DynamicTable

PAD = 0
"""Nothing is here. Always embeds to exact zeros and is never trained."""
MASK = 1
"""[MASK] of masked channel prediction (SuperMoE §3.1)."""
MISSING = 2
"""The value is unknown; a row like any other, so that the absence can be learned from."""
NUM_RESERVED = 3
"""Real values start here."""


def ids_key(table: str) -> str:
    """A localized batch's key of a large table's distinct row numbers, int64 [U]."""
    return f"row_ids_{table}"


def rows_key(table: str) -> str:
    """A batch's key of those rows' values, float32 [U, dim]."""
    return f"rows_{table}"


class EmbeddingTable(keras.layers.Layer):
    """Looks rows up; row `PAD` reads as zeros whatever is stored there.

    A *small* table is one trainable weight, `rows`. A *large* one is `shards`, variables that hold
    the rows r with r % len(shards) == shard and that no Keras optimizer knows
    (`modules/embeddings/local_tables.py` trains them); or it has no shards at all, because a sparse
    tier holds it (`modules/embeddings/sharding.py` decides). A *dynamic* table is a large one
    whose rows are in `dynamic_rows`, and whose ids are keys. A batch may bring a large table's rows
    along; then ids are positions among those.

    The weights are float32 under every dtype policy; only what is looked up is cast to the
    compute dtype (autocasting the variable would copy the whole table each step).

    Args:
      num_rows: rows including the `NUM_RESERVED` reserved ones.
      dim: width of a row.
      large: sharded, and trained by distinct rows.
      seed: of the initial rows, which also depend on the table's name.
      init_scale: rows start uniform in ±init_scale.
      dynamic_rows: has the rows instead; `large` must be true.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int,
        name: str,
        large: bool = False,
        seed: int = 0,
        init_scale: float = 0.05,
        dynamic_rows: DynamicTable | None = None,
        **kwargs: Any,
    ):
        if num_rows < NUM_RESERVED:
            raise ValueError(
                f"table {name!r}: num_rows is {num_rows}, but {NUM_RESERVED} rows are reserved"
            )
        super().__init__(name=name, autocast=False, **kwargs)
        self.num_rows = num_rows
        self.dim = dim
        self.large = large
        self.seed = seed
        self.init_scale = init_scale
        self.dynamic_rows = dynamic_rows
        # Created here, not on the first call: an optimizer and a weight-tied head need it.
        if dynamic_rows is not None:
            self.shards = []
        elif large:
            self.shards = self._add_shards(sharding.num_shards(num_rows, dim))
        else:
            self.rows = self.add_weight(
                name="rows",
                shape=(num_rows, dim),
                dtype=tf.float32,
                initializer=self._initial_rows,
                experimental_autocast=False,
            )

    def call(self, ids: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """Embeds row numbers.

        Args:
          ids: int32 or int64 [...], each in [0, num_rows), or keys where the table is dynamic;
            with `rows`, in [0, U).
          rows: float [U, dim], the batch's own rows of this table, the reserved ones first.

        Returns:
          Compute dtype [..., dim]; zeros, without gradient, where `ids` is `PAD`.
        """
        found = self.lookup(ids) if rows is None else tf.gather(rows, ids)
        found = tf.cast(found, self.compute_dtype)
        return found * tf.cast(ids != PAD, found.dtype)[..., tf.newaxis]

    def lookup(self, ids: tf.Tensor) -> tf.Tensor:
        """int [...] -> float32 [..., dim], from the stored rows; nothing is admitted.

        Raises:
          ValueError: a sparse tier holds this table: its rows must come with the batch.
        """
        if not self.large:
            return tf.gather(self.rows, ids)
        if self.dynamic_rows is not None:
            return self.dynamic_rows.lookup(tf.cast(ids, tf.int64))
        if not self.shards:
            raise ValueError(
                f"table {self.name!r} has no rows in this process; give the batch's as `rows`"
            )
        if len(self.shards) == 1:
            return tf.gather(self.shards[0], ids)
        return tf.compat.v1.nn.embedding_lookup(self.shards, ids, partition_strategy="mod")

    def _add_shards(self, count: int) -> list[tf.Variable]:
        shards = []
        for shard in range(count):
            variable = self.add_weight(
                name=f"rows_{shard}",
                shape=(shard_rows(self.num_rows, shard, count), self.dim),
                dtype=tf.float32,
                initializer="zeros",
                trainable=False,
                experimental_autocast=False,
            )
            for copy in tf.distribute.get_strategy().experimental_local_results(variable):
                self._fill(copy, shard, count)
            shards.append(variable)
        return shards

    def _fill(self, rows: tf.Variable, shard: int, count: int) -> None:
        seed = table_seed(self.name, self.seed)

        # As a graph: eagerly, each of its many small operations would go to the parameter server.
        @tf.function(autograph=False)
        def in_chunks() -> None:
            fill(rows, seed, self.init_scale, shard, count)

        in_chunks()

    def _initial_rows(self, shape: tf.TensorShape, dtype: tf.DType, **_: Any) -> tf.Tensor:
        numbers = tf.range(shape[0], dtype=tf.int64)
        rows = initial_rows(numbers, shape[1], self.init_scale, table_seed(self.name, self.seed))
        return tf.cast(rows, dtype)

    def get_config(self) -> dict:
        return super().get_config() | {
            "num_rows": self.num_rows,
            "dim": self.dim,
            "large": self.large,
            "seed": self.seed,
            "init_scale": self.init_scale,
        }
