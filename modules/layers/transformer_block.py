"""One dense transformer block: what an MoE block is without its experts."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from modules.layers.adapter import Patch, unpatched
from modules.layers.moe_attention import MoEMultiHeadAttention
from modules.layers.norm import layer_norm


class TransformerBlock(keras.layers.Layer):
    """x + MSA(LayerNorm(x)), then x + FFN(LayerNorm(x)) (Vaswani et al. 2017, pre-LN).

    With one expert, MoE-MSA is multi-head attention: its gate is 1.

    Args:
      hidden_dim: D.
      num_heads: of the attention.
      ffn_dim: hidden units of the feed-forward layer.
      dropout: rate, of both residuals.

    Attributes:
      insertions: places of patches, by insertion: behind a residual's layer (Houlsby et al. 2019)
        or beside it (He et al. 2022).
    """

    insertions = {"serial": ("attention", "ffn"), "parallel": ("attention", "ffn")}

    def __init__(
        self, hidden_dim: int, num_heads: int, ffn_dim: int, dropout: float = 0.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self._config = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "ffn_dim": ffn_dim,
            "dropout": dropout,
        }
        policy = self.dtype_policy
        self.attention = MoEMultiHeadAttention(
            num_heads, hidden_dim, 1, dropout, name="attention", dtype=policy
        )
        self.widen = keras.layers.Dense(ffn_dim, activation="gelu", dtype=policy)
        self.narrow = keras.layers.Dense(hidden_dim, dtype=policy)
        self.attention_norm, self.ffn_norm = (layer_norm(dtype=policy) for _ in range(2))
        self.dropout = keras.layers.Dropout(dropout, dtype=policy)

    def call(
        self,
        x_BLD: tf.Tensor,
        mask_BL: tf.Tensor,
        causal: bool = False,
        training: bool = False,
        patch: Patch = unpatched,
    ) -> tf.Tensor:
        """float [B, L, D], bool [B, L] -> [B, L, D]; no position depends on padding."""
        given_BLD = self.attention_norm(x_BLD)
        y_BLD = self.attention(given_BLD, mask_BL, causal=causal, training=training)
        y_BLD = patch(y_BLD, given_BLD, place="attention")
        x_BLD += self.dropout(y_BLD, training=training)
        given_BLD = self.ffn_norm(x_BLD)
        y_BLD = patch(self.narrow(self.widen(given_BLD)), given_BLD, place="ffn")
        return x_BLD + self.dropout(y_BLD, training=training)

    def get_config(self) -> dict:
        return super().get_config() | self._config
