"""DIN's heads: towers that also read the events, by attention from the candidate."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.target_attention import TargetAttention
from modules.models.encoder import Events
from modules.models.tables import Tables
from modules.models.towers import Towers


class Interest(keras.layers.Layer):
    """The user's interest in each candidate (Zhou et al. 2018, eq. 3)."""

    def __init__(self, name: str = "interest"):
        super().__init__(name=name, autocast=False)
        self._attention = TargetAttention(name="attention")

    def call(self, candidate: tf.Tensor, events: Events, batch: Batch) -> tf.Tensor:
        """candidate float32 [B, K, D] -> [B, K, D]."""
        del batch
        return self._attention(candidate, events.hidden, events.visible)


def din_towers(spec: Spec, tables: Tables) -> Towers:
    """KEEP §4.2's extraction model: shared embeddings and attention, each task its own tower."""
    return Towers(spec, tables, interaction=Interest())
