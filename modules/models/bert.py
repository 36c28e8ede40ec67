"""BERT on channels: dense transformer blocks under SuperMoE's input and objective (its §4.1)."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.norm import layer_norm
from modules.layers.pooling import MAX
from modules.layers.transformer_block import TransformerBlock
from modules.models.encoder import Encoded
from modules.models.sequence_input import SequenceInput
from modules.models.tables import Tables


class Bert(keras.layers.Layer):
    """SuperMoE's encoder with dense blocks: what its experts are worth is the difference."""

    pooling = MAX

    def __init__(self, spec: Spec, tables: Tables, name: str = "encoder"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        sizes = spec.model
        self._causal = spec.sequence.targets == "causal"
        self._input = SequenceInput(spec, tables)
        self._blocks = [
            TransformerBlock(
                sizes.hidden_dim, sizes.num_heads, sizes.ffn_dim, sizes.dropout, name=f"block_{i}"
            )
            for i in range(sizes.num_blocks)
        ]
        self._norm = layer_norm(name="norm")

    def call(self, batch: Batch, training: bool = False) -> Encoded:
        x, mask = self._input(batch, training=training)
        for block in self._blocks:
            x = block(x, mask, causal=self._causal, training=training)
        return Encoded(tf.cast(self._norm(x), tf.float32), mask, ())
