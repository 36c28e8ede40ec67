"""Experts that tasks share, and the gate that mixes them for one: MMoE's and PLE's parts."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


class Experts(keras.layers.Layer):
    """f_e(x) = relu(x · W_e + b_e), e = 1 … E, in one product.

    Args:
      num_experts: E.
      dim: F, of an expert's output.
      dropout: rate, of the outputs.
    """

    def __init__(self, num_experts: int, dim: int, dropout: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self._config = {"num_experts": num_experts, "dim": dim, "dropout": dropout}
        self._shape = (num_experts, dim)
        self.dense = keras.layers.Dense(
            num_experts * dim,
            activation="relu",
            kernel_initializer="he_uniform",  # of the fan-in: one of many starts as a lone one
            dtype=self.dtype_policy,
        )
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float [..., S] -> [..., E, F]."""
        shape = tf.concat([tf.shape(x)[:-1], self._shape], axis=0)
        return self.dropout(tf.reshape(self.dense(x), shape), training=training)

    def get_config(self) -> dict:
        return super().get_config() | self._config


class ExpertGate(keras.layers.Layer):
    """y = Σ_e softmax(x · W)_e · f_e   (MMoE; Ma et al., 2018, §4.2). The softmax is in float32."""

    def __init__(self, num_experts: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._config = {"num_experts": num_experts}
        self.logits = keras.layers.Dense(num_experts, use_bias=False, dtype="float32")

    def call(self, x: tf.Tensor, experts: tf.Tensor) -> tf.Tensor:
        """float [..., S], [..., E, F] -> [..., F]."""
        weights = tf.cast(tf.nn.softmax(self.logits(x)), experts.dtype)
        return tf.squeeze(tf.matmul(weights[..., tf.newaxis, :], experts), axis=-2)

    def get_config(self) -> dict:
        return super().get_config() | self._config
