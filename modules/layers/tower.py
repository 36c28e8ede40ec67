"""A task's tower: from the user representation to the task's logits. Eq. 8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras


class Tower(keras.layers.Layer):
    """y_i = Tower_i(H) (SuperMoE eq. 8): without hidden layers, the paper's linear layer.

    Args:
      hidden_dims: widths of hidden layers, each relu and dropout; () for none.
      output_dim: logits.
      dropout: rate, of each hidden layer.
    """

    def __init__(
        self, hidden_dims: Sequence[int], output_dim: int, dropout: float = 0.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self._config = {
            "hidden_dims": tuple(hidden_dims),
            "output_dim": output_dim,
            "dropout": dropout,
        }
        self.hidden = [
            keras.layers.Dense(dim, activation="relu", dtype=self.dtype_policy)
            for dim in hidden_dims
        ]
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.logits = keras.layers.Dense(output_dim, dtype="float32")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float [..., D] -> float32 [..., output_dim], no activation."""
        return self.logits(self.last_hidden(x, training))

    def last_hidden(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The layer before the logits: float [..., D] -> [..., hidden_dims[-1]] (D if none)."""
        for layer in self.hidden:
            x = self.dropout(layer(x), training=training)
        return x

    def get_config(self) -> dict:
        return super().get_config() | self._config
