"""The encoder of the multi-task baselines: a history is the mean of its events."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.pooling import MEAN
from modules.models.encoder import Encoded
from modules.models.sequence_input import SequenceInput
from modules.models.tables import Tables


class EventMean(keras.layers.Layer):
    """h_o are the projected channels (SuperMoE eq. 4), H their mean: no event sees another."""

    pooling = MEAN

    def __init__(self, spec: Spec, tables: Tables, name: str = "encoder"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        self._input = SequenceInput(spec, tables)

    def call(self, batch: Batch, training: bool = False) -> Encoded:
        x, mask = self._input(batch, training=training)
        return Encoded(tf.cast(x, tf.float32), mask, ())
