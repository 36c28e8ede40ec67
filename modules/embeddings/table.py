"""An embedding table: one row of floats per category value or id."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

PAD = 0
"""Nothing is here. Always embeds to exact zeros and is never trained."""
MASK = 1
"""[MASK] of masked channel prediction (SuperMoE §3.1)."""
MISSING = 2
"""The value is unknown; a row like any other, so that the absence can be learned from."""
NUM_RESERVED = 3
"""Real values start here."""


class EmbeddingTable(keras.layers.Layer):
    """Looks rows up; row `PAD` reads as zeros whatever is stored there.

    The weights are float32 under every dtype policy; only what is looked up is cast to the
    compute dtype (autocasting the variable would copy the whole table each step).

    Args:
      num_rows: rows including the `NUM_RESERVED` reserved ones.
      dim: width of a row.
      init_scale: rows start uniform in ±init_scale.
    """

    def __init__(self, num_rows: int, dim: int, name: str, init_scale: float = 0.05, **kwargs: Any):
        if num_rows < NUM_RESERVED:
            raise ValueError(
                f"table {name!r}: num_rows is {num_rows}, but {NUM_RESERVED} rows are reserved"
            )
        super().__init__(name=name, autocast=False, **kwargs)
        self.num_rows = num_rows
        self.dim = dim
        self.init_scale = init_scale
        # Created here, not on the first call: an optimizer and a weight-tied head need it.
        self.rows = self.add_weight(
            name="rows",
            shape=(num_rows, dim),
            dtype=tf.float32,
            initializer=self._initial_rows,
            experimental_autocast=False,
        )

    def _initial_rows(self, shape: tf.TensorShape, dtype: tf.DType, **_: Any) -> tf.Tensor:
        uniform = keras.initializers.RandomUniform(-self.init_scale, self.init_scale)
        # In a graph the scaling reuses the random numbers' buffer; eagerly the peak is 3 tables.
        draw = tf.function(lambda: uniform(shape, dtype), autograph=False)
        return draw.get_concrete_function()()

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Embeds row numbers.

        Args:
          ids: int32 or int64 [...], each in [0, num_rows).

        Returns:
          Compute dtype [..., dim]; zeros, without gradient, where `ids` is `PAD`.
        """
        rows = tf.cast(tf.gather(self.rows, ids), self.compute_dtype)
        return rows * tf.cast(ids != PAD, rows.dtype)[..., tf.newaxis]

    def get_config(self) -> dict:
        config = {"num_rows": self.num_rows, "dim": self.dim, "init_scale": self.init_scale}
        return super().get_config() | config
