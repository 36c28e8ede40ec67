"""The plug-in network: knowledge added to a hidden layer, whose shape stays (KEEP eq. 5)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


class PlugIn(keras.layers.Layer):
    """h^k = MLP(K(u, i));  h'_m = h_m + h^k   (KEEP eq. 5)

    The MLP has one hidden layer, as wide as h_m, and its last layer starts at zero: the model that
    it is plugged into goes on from what it computed before.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)

    def build(self, shapes: tuple) -> None:
        width = shapes[-1]
        self._hidden = keras.layers.Dense(width, "relu", dtype="float32", name="hidden")
        self._out = keras.layers.Dense(
            width, use_bias=False, kernel_initializer="zeros", dtype="float32", name="out"
        )
        super().build(shapes)

    def call(self, h: tf.Tensor, knowledge: tf.Tensor) -> tf.Tensor:
        """float32 [..., D], [..., ΣD_k] -> [..., D]."""
        return h + self._out(self._hidden(knowledge))
