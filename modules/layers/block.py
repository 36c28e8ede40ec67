"""One MoE transformer block: attention, then two MoE feed-forward layers. Eq. 7."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from modules.layers.adapter import Patch, unpatched
from modules.layers.moe_attention import MoEMultiHeadAttention
from modules.layers.moe_ffn import MoEAux, MoEFeedForward
from modules.layers.norm import layer_norm


class MoETransformerBlock(keras.layers.Layer):
    """MoE_FFN(MoE_FFN(MoE_MSA(x))) with a residual around each (SuperMoE §3.1, eq. 7).

    Each of the three sees a layer-normalised input (pre-LN): x + dropout(f(LayerNorm(x))).

    Args: as in `MoEMultiHeadAttention` and `MoEFeedForward`; `num_experts` is of the
      feed-forward layers, `num_attention_experts` of the q, k and v projections.

    Attributes:
      insertions: places of patches, as in `TransformerBlock`.
    """

    insertions = {
        "serial": ("attention", "ffn_0", "ffn_1"),
        "parallel": ("attention", "ffn_0", "ffn_1"),
    }

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_experts: int,
        num_attention_experts: int = 1,
        capacity_factor: float | None = None,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._config = {
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "ffn_dim": ffn_dim,
            "num_experts": num_experts,
            "num_attention_experts": num_attention_experts,
            "capacity_factor": capacity_factor,
            "dropout": dropout,
        }
        policy = self.dtype_policy
        self.attention = MoEMultiHeadAttention(
            num_heads, hidden_dim, num_attention_experts, dropout, name="attention", dtype=policy
        )
        self.ffns = [
            MoEFeedForward(
                num_experts, hidden_dim, ffn_dim, capacity_factor, name=f"ffn_{i}", dtype=policy
            )
            for i in range(2)
        ]
        self.attention_norm, *self.ffn_norms = (layer_norm(dtype=policy) for _ in range(3))
        self.dropout = keras.layers.Dropout(dropout, dtype=policy)

    def call(
        self,
        x_BLD: tf.Tensor,
        mask_BL: tf.Tensor,
        causal: bool = False,
        training: bool = False,
        patch: Patch = unpatched,
    ) -> tuple[tf.Tensor, tuple[MoEAux, MoEAux]]:
        """float [B, L, D], bool [B, L] -> [B, L, D] and the report of each feed-forward layer.

        Padding positions carry values no other position depends on.
        """
        given_BLD = self.attention_norm(x_BLD)
        y_BLD = self.attention(given_BLD, mask_BL, causal=causal, training=training)
        y_BLD = patch(y_BLD, given_BLD, place="attention")
        x_BLD += self.dropout(y_BLD, training=training)
        auxes = []
        for i, (norm, ffn) in enumerate(zip(self.ffn_norms, self.ffns, strict=True)):
            given_BLD = norm(x_BLD)
            y_BLD, aux = ffn(given_BLD, mask_BL, training=training)
            y_BLD = patch(y_BLD, given_BLD, place=f"ffn_{i}")
            x_BLD += self.dropout(y_BLD, training=training)
            auxes.append(aux)
        return x_BLD, tuple(auxes)

    def get_config(self) -> dict:
        return super().get_config() | self._config
