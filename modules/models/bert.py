"""BERT on channels: dense transformer blocks under SuperMoE's input and objective (its §4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.adapter import Patch, with_patches
from modules.layers.norm import layer_norm
from modules.layers.pooling import MAX, Pooling
from modules.layers.transformer_block import TransformerBlock
from modules.models.encoder import Encoded, pooling_of
from modules.models.sequence_input import SequenceInput
from modules.models.tables import Tables


class Bert(keras.layers.Layer):
    """SuperMoE's encoder with dense blocks: one feed-forward layer instead of two, no experts."""

    def __init__(self, spec: Spec, tables: Tables, pooling: Pooling = MAX, name: str = "encoder"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        self.pooling = pooling_of(spec, pooling)
        sizes = spec.model
        self._causal = spec.sequence.targets == "causal"
        self._input = SequenceInput(spec, tables)
        self.blocks = [
            TransformerBlock(
                sizes.hidden_dim, sizes.num_heads, sizes.ffn_dim, sizes.dropout, name=f"block_{i}"
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
        layers = [x]
        for block, patch in with_patches(self.blocks, patches):
            x = block(x, mask, causal=self._causal, training=training, patch=patch)
            layers.append(x)
        return Encoded(tf.cast(self._norm(x), tf.float32), mask, (), tuple(layers))
