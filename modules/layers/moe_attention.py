"""MoE multi-head self-attention: q, k and v are gated mixtures of expert projections. Eq. 5."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tf_keras as keras


class MoEMultiHeadAttention(keras.layers.Layer):
    """y = softmax((q w^q G_q(q)) (k w^k G_k(k))ᵀ / sqrt(d_k)) (v w^v G_v(v))  (SuperMoE eq. 5)

    then an output projection over the concatenated heads. Eq. 5 doesn't say what the gates
    choose between; we read `x w G(x)` as eq. 6's mixture with linear experts and a gate of its
    own for each of q, k and v:

        x w G(x) = Σ_e softmax(x g)_e · (x w_e)

    dense over a few experts: a hard choice would buy little for a projection and would make
    attention scores jump. The sum is folded into the product: [G_1 x, …, G_E x] · [w_1; …; w_E].
    Gates and attention weights are computed in float32. No biases, so a query that sees
    nothing gets exactly 0.

    Args:
      num_heads: divides `hidden_dim`.
      hidden_dim: D.
      num_experts: E, of each of the three projections; 1 is ordinary attention.
      dropout: rate, of the attention weights.
    """

    def __init__(
        self,
        num_heads: int,
        hidden_dim: int,
        num_experts: int = 1,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if hidden_dim % num_heads:
            raise ValueError(
                f"{self.name}: hidden_dim {hidden_dim} is not a multiple of num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.num_experts = num_experts
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)
        self.gates = keras.layers.Dense(3 * num_experts, use_bias=False, dtype="float32")
        self.w_qkv = [self._add_experts(name) for name in ("w_q", "w_k", "w_v")]
        self.output_projection = keras.layers.Dense(
            hidden_dim, use_bias=False, dtype=self.dtype_policy
        )

    def _add_experts(self, name: str) -> tf.Variable:
        D = self.hidden_dim
        initializer = keras.initializers.TruncatedNormal(stddev=math.sqrt(1 / D))
        return self.add_weight(name, (self.num_experts * D, D), initializer=initializer)

    def call(
        self,
        x_BLD: tf.Tensor,
        mask_BL: tf.Tensor,
        causal: bool = False,
        training: bool = False,
    ) -> tf.Tensor:
        """Attends.

        Args:
          x_BLD: float.
          mask_BL: bool, False for padding, which nothing attends to.
          causal: position i attends to positions ≤ i only.

        Returns:
          [B, L, D] of the compute dtype; 0 where there is nothing to attend to.
        """
        q_BHLd, k_BHLd, v_BHLd = (self._heads(p) for p in self._projections(x_BLD))
        length = tf.shape(x_BLD)[1]
        visible = mask_BL[:, tf.newaxis, tf.newaxis, :]
        if causal:
            position = tf.range(length)
            visible &= position[:, tf.newaxis] >= position
        scores = tf.matmul(q_BHLd * (q_BHLd.shape[-1] ** -0.5), k_BHLd, transpose_b=True)
        weights = self.dropout(_masked_softmax(scores, visible), training=training)
        y_BLHd = tf.transpose(tf.matmul(weights, v_BHLd), [0, 2, 1, 3])
        return self.output_projection(tf.reshape(y_BLHd, tf.shape(x_BLD)))

    def _projections(self, x_BLD: tf.Tensor) -> list[tf.Tensor]:
        """The gated mixtures q, k, v, each [B, L, D]."""
        shape = tf.shape(x_BLD)
        if self.num_experts == 1:
            return [tf.matmul(x_BLD, w) for w in self.w_qkv]
        logits = tf.reshape(self.gates(x_BLD), tf.concat([shape[:-1], [3, self.num_experts]], 0))
        gates = tf.cast(tf.nn.softmax(logits), x_BLD.dtype)
        expanded = tf.concat([shape[:-1], [self.num_experts * self.hidden_dim]], 0)
        return [
            tf.matmul(tf.reshape(gate[..., tf.newaxis] * x_BLD[..., tf.newaxis, :], expanded), w)
            for gate, w in zip(tf.unstack(gates, axis=-2), self.w_qkv, strict=True)
        ]

    def _heads(self, x_BLD: tf.Tensor) -> tf.Tensor:
        """[B, L, D] -> [B, H, L, D/H]."""
        shape = tf.shape(x_BLD)
        size = self.hidden_dim // self.num_heads
        return tf.transpose(
            tf.reshape(x_BLD, [shape[0], shape[1], self.num_heads, size]), [0, 2, 1, 3]
        )

    def get_config(self) -> dict:
        return super().get_config() | {
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "num_experts": self.num_experts,
            "dropout": self.dropout.rate,
        }


def _masked_softmax(scores: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis where `visible`; all zeros for a row that sees nothing."""
    scores_32 = tf.cast(scores, tf.float32)
    # Finite, so that a row that sees nothing gives no NaN before it is zeroed.
    weights = tf.nn.softmax(tf.where(visible, scores_32, tf.float32.min))
    return tf.cast(tf.where(visible, weights, 0.0), scores.dtype)
