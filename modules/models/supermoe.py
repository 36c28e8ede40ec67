"""SuperMoE's encoder: MoE-MSA and MoE-FFNs over the projected channels (paper §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.adapter import Patch, with_patches
from modules.layers.block import MoETransformerBlock
from modules.layers.norm import layer_norm
from modules.layers.pooling import MAX
from modules.models.encoder import Encoded, pooling_of
from modules.models.sequence_input import SequenceInput
from modules.models.tables import Tables


class SuperMoE(keras.layers.Layer):
    """Eq. 7: blocks of MoE-MSA and two MoE-FFNs; H is the maximum over h_o (eq. 8)
    unless `model.pooling` says otherwise."""

    def __init__(self, spec: Spec, tables: Tables, name: str = "encoder"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        self.pooling = pooling_of(spec, MAX)
        sizes = spec.model
        self._causal = spec.sequence.targets == "causal"
        self._input = SequenceInput(spec, tables)
        self.blocks = [
            MoETransformerBlock(
                num_heads=sizes.num_heads,
                hidden_dim=sizes.hidden_dim,
                ffn_dim=sizes.ffn_dim,
                num_experts=sizes.num_experts,
                num_attention_experts=sizes.num_attention_experts,
                capacity_factor=sizes.capacity_factor,
                dropout=sizes.dropout,
                name=f"block_{i}",
            )
            for i in range(sizes.num_blocks)
        ]
        self._norm = layer_norm(name="norm")

    @property
    def stages(self) -> list[list[keras.layers.Layer]]:
        *earlier, last = self.blocks
        return [[self._input], *([block] for block in earlier), [last, self._norm]]

    def call(
        self, batch: Batch, training: bool = False, patches: Sequence[Patch] | None = None
    ) -> Encoded:
        x, mask = self._input(batch, training=training)
        layers, aux = [x], []
        for block, patch in with_patches(self.blocks, patches):
            x, block_aux = block(x, mask, causal=self._causal, training=training, patch=patch)
            layers.append(x)
            aux.extend(block_aux)
        return Encoded(tf.cast(self._norm(x), tf.float32), mask, tuple(aux), tuple(layers))
