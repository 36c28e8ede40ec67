"""NextItNet, PeterRec's backbone: residual blocks of dilated convolutions (PeterRec §3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.adapter import Patch, with_patches
from modules.layers.dilated_convolution import DilatedResidualBlock
from modules.layers.pooling import ENDS, LAST
from modules.models.encoder import Encoded, pooling_of
from modules.models.sequence_input import SequenceInput
from modules.models.tables import Tables


class NextItNet(keras.layers.Layer):
    """Eq. 3-4: causal under `targets: causal`, else seeing both sides (GRec's encoder).

    There is no [TCL] token of its own: one pass serves targets anywhere in the window, so the
    newest event a target sees stands for it, the position that predicts what comes next (eq. 5).
    With both sides in view H adds the leading token to it, eq. 6's sum of two tokens.
    """

    def __init__(self, spec: Spec, tables: Tables, name: str = "encoder"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        sizes = spec.model
        causal = spec.sequence.targets == "causal"
        self.pooling = pooling_of(spec, LAST if causal else ENDS)
        self._input = SequenceInput(spec, tables)
        dilations = [sizes.dilations[i % len(sizes.dilations)] for i in range(2 * sizes.num_blocks)]
        self.blocks = [
            DilatedResidualBlock(
                sizes.hidden_dim,
                (dilations[2 * i], dilations[2 * i + 1]),
                causal,
                name=f"block_{i}",
            )
            for i in range(sizes.num_blocks)
        ]

    @property
    def stages(self) -> list[list[keras.layers.Layer]]:
        return [[self._input], *([*layer] for block in self.blocks for layer in block.layers)]

    def call(
        self, batch: Batch, training: bool = False, patches: Sequence[Patch] | None = None
    ) -> Encoded:
        x, mask = self._input(batch, training=training)
        layers = [x]
        for block, patch in with_patches(self.blocks, patches):
            x = block(x, mask, patch=patch)
            layers.append(x)
        return Encoded(tf.cast(x, tf.float32), mask, (), tuple(layers))
