"""Target attention: a user's interest in this very candidate (DIN, Zhou et al. 2018, eq. 3)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


class TargetAttention(keras.layers.Layer):
    """v(A) = Σ_j a(e_j, v_A) · e_j   (DIN eq. 3)

    a is the activation unit: a hidden layer of [e, v, e ⊙ v] with PReLU, then one number. It isn't
    normalised over the events: how many of them match is part of the interest (§4.3). (A layer
    over e - v, as in published code, is one over e and v.)

    Args:
      units: of the activation unit's hidden layer.
    """

    def __init__(self, units: int = 16, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self._of_event = keras.layers.Dense(units, dtype="float32", name="of_event")
        self._of_candidate = keras.layers.Dense(
            units, use_bias=False, dtype="float32", name="of_candidate"
        )
        self._activation = keras.layers.PReLU(shared_axes=[1, 2], dtype="float32", name="prelu")
        self._weight = keras.layers.Dense(1, dtype="float32", name="weight")
        self._units = units

    def build(self, shapes: tuple) -> None:
        self._of_product = self.add_weight(
            name="of_product", shape=[shapes[-1], self._units], initializer="glorot_uniform"
        )
        super().build(shapes)

    def call(
        self, candidate_BKD: tf.Tensor, events_BLD: tf.Tensor, visible_BKL: tf.Tensor
    ) -> tf.Tensor:
        """Interests of targets in one user's events.

        Args:
          candidate_BKD, events_BLD: float32.
          visible_BKL: bool, which events each target may see.

        Returns:
          float32 [B, K, D]; zeros where nothing is visible.
        """
        # The hidden layer is linear in each of its inputs: [B, K, L, D] is never made.
        by_candidate_BKDU = candidate_BKD[..., tf.newaxis] * self._of_product
        hidden_BKLU = (
            tf.einsum("bld,bkdu->bklu", events_BLD, by_candidate_BKDU)
            + self._of_event(events_BLD)[:, tf.newaxis]
            + self._of_candidate(candidate_BKD)[:, :, tf.newaxis]
        )
        weight_BKL = self._weight(self._activation(hidden_BKLU))[..., 0]
        weight_BKL = tf.where(visible_BKL, weight_BKL, 0.0)
        return tf.einsum("bkl,bld->bkd", weight_BKL, events_BLD)
