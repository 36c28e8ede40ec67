"""What encoders read: one token an event, and one for the context before them."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.feature_projection import FeatureProjection
from modules.models.tables import Tables


class SequenceInput(keras.layers.Layer):
    """Projected channels (MFP, SuperMoE eq. 4) plus positions, behind a leading token.

    The token is made of the context that the encoder reads, if any, and stands before the oldest
    event, so a user without events has a representation too.
    """

    def __init__(self, spec: Spec, tables: Tables, name: str = "input"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        sizes = spec.model
        self._causal = spec.sequence.targets == "causal"
        positions = spec.sequence.window if self._causal else spec.sequence.max_length
        self._project = FeatureProjection(
            spec.scope("sequence"), tables, sizes.hidden_dim, sizes.dropout
        )
        self._project_context = (
            FeatureProjection(spec.encoder_context, tables, sizes.hidden_dim, sizes.dropout)
            if spec.encoder_context
            else None
        )
        self._lead = self.add_weight(
            name="lead",
            shape=[sizes.hidden_dim],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self._position = self.add_weight(
            name="position",
            shape=[positions, sizes.hidden_dim],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, batch: Batch, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Sequence and context features of `modules/features.py`.

        Returns:
          Compute dtype [B, 1 + L, D] and bool [B, 1 + L].
        """
        mask = batch["sequence_mask"]
        x = self._project(batch, training=training)
        x += self._positions(mask, x.dtype)
        lead = tf.broadcast_to(tf.cast(self._lead, x.dtype), [tf.shape(x)[0], 1, tf.shape(x)[2]])
        if self._project_context is not None:
            lead += self._project_context(batch, training=training)[:, tf.newaxis]
        mask = tf.pad(mask, [[0, 0], [1, 0]], constant_values=True)
        return tf.concat([lead, x], axis=1), mask

    def _positions(self, mask: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Causal: the event's place in the window. Expanded: its distance from the newest."""
        num_positions = self._position.shape[0]
        place = tf.range(tf.shape(mask)[1])[tf.newaxis, :]
        if not self._causal:
            place = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1, keepdims=True) - 1 - place
        place = tf.clip_by_value(place, 0, num_positions - 1)
        return tf.gather(tf.cast(self._position, dtype), place)
