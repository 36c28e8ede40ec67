"""The co-action unit: one id's parameters applied to another's (CAN, Bian et al. 2020, §4)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


class CoAction(keras.layers.Layer):
    """Σ_j F(candidate, e_j): the candidate's row is a small MLP, fed with each event's row.

        F = [h_1, …, h_n],  h_i = tanh(w_i · h_{i-1} + b_i),  h_0 = P_feed(e)   (CAN eq. 5-6)

    w and b are a linear map of the candidate's embedding, and P_feed one of the event's: CAN
    stores both in tables of their own, which a wide shared row stands for here, so that any kind
    of table will do.

    Args:
      dims: width of h_0 and of every layer.
    """

    def __init__(self, dims: tuple[int, ...] = (8, 4), **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.dims = dims
        shapes = list(zip(dims[:-1], dims[1:], strict=True))
        self._feed = keras.layers.Dense(dims[0], use_bias=False, dtype="float32", name="feed")
        self._weights = [
            keras.layers.Dense(i * o, dtype="float32", name=f"weight_{n}")
            for n, (i, o) in enumerate(shapes)
        ]
        self._biases = [
            keras.layers.Dense(o, dtype="float32", name=f"bias_{n}")
            for n, (_, o) in enumerate(shapes)
        ]

    def call(
        self, candidate_BKD: tf.Tensor, events_BLD: tf.Tensor, visible_BKL: tf.Tensor
    ) -> tf.Tensor:
        """Co-action of each target's candidate with the events it sees.

        Args:
          candidate_BKD: float32, the candidate's row; events_BLD: the events' rows.
          visible_BKL: bool.

        Returns:
          float32 [B, K, sum(dims[1:])].
        """
        h_BKLI = self._feed(events_BLD)[:, tf.newaxis]
        seen_BKL = tf.cast(visible_BKL, tf.float32)
        parts: list[tf.Tensor] = []
        for weight, bias, out in zip(self._weights, self._biases, self.dims[1:], strict=True):
            w_BKIO = self._as_matrix(weight(candidate_BKD), out)
            # The first layer's input has no K: every candidate is fed with the same events.
            equation = "bli,bkio->bklo" if not parts else "bkli,bkio->bklo"
            fed = h_BKLI[:, 0] if not parts else h_BKLI
            h_BKLI = tf.tanh(
                tf.einsum(equation, fed, w_BKIO) + bias(candidate_BKD)[:, :, tf.newaxis]
            )
            parts.append(tf.einsum("bklo,bkl->bko", h_BKLI, seen_BKL))
        return tf.concat(parts, axis=-1)

    def _as_matrix(self, flat_BKX: tf.Tensor, out: int) -> tf.Tensor:
        shape = tf.shape(flat_BKX)
        return tf.reshape(flat_BKX, [shape[0], shape[1], flat_BKX.shape[-1] // out, out])
