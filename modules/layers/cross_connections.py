"""CoNet's cross connections: two networks, each of which reads the other's hidden layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from modules.replicas import share_of_same


class CrossConnections(keras.layers.Layer):
    """h_t' = relu(W_t h_t + b_t + H h_s),  h_s' = relu(W_s h_s + b_s + H h_t)

    (Hu et al. 2018, eq. 6 and 7: the same H both ways.) Both first layers read the same x, where
    crossing would say nothing new, so they have no H. With H = 0 it is two separate MLPs.

    Args:
      dims: width of every layer; all but the first are crossed.
      dropout: rate, of each layer.
    """

    def __init__(self, dims: Sequence[int], dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.target, self.source = (
            [
                keras.layers.Dense(dim, dtype=policy, name=f"{name}_{i}")
                for i, dim in enumerate(dims)
            ]
            for name in ("target", "source")
        )
        self.cross = [
            keras.layers.Dense(dim, use_bias=False, dtype=policy, name=f"cross_{i}")
            for i, dim in enumerate(dims[1:], start=1)
        ]
        self._dropout = keras.layers.Dropout(dropout, dtype=policy)

    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """float [..., S] -> h_t and h_s of the last layer, [..., dims[-1]] each."""
        h_t, h_s = x, x
        for target, source, cross in zip(
            self.target, self.source, [None, *self.cross], strict=True
        ):
            z_t, z_s = target(h_t), source(h_s)
            if cross is not None:
                z_t, z_s = z_t + cross(h_s), z_s + cross(h_t)
            h_t, h_s = (self._dropout(tf.nn.relu(z), training=training) for z in (z_t, z_s))
        return h_t, h_s

    def lasso(self) -> tf.Tensor:
        """Σ |H| over all of H (eq. 9), this replica's share."""
        return share_of_same(tf.add_n([tf.reduce_sum(tf.abs(c.kernel)) for c in self.cross]))
