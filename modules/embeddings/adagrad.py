"""Adagrad's rule, a state of one float an element or of one float a row.

    a += g² (or mean(g²) over a row);   w -= learning_rate · g / sqrt(a + epsilon)

References: Duchi et al., 2011; row-wise as in DLRM (Naumov et al., 2019) and FBGEMM.
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

AdagradKind = Literal["rowwise_adagrad", "adagrad"]
INITIAL_STATE = 0.1
"""Start of every a; damps the first steps."""
EPSILON = 1e-10


def state_shape(kind: AdagradKind, num_rows: int, dim: int) -> list[int]:
    """Of the state of rows [num_rows, dim]."""
    return [num_rows] if kind == "rowwise_adagrad" else [num_rows, dim]


def squared(gradient: tf.Tensor, kind: AdagradKind) -> tf.Tensor:
    """What a gradient [rows, ...] adds to the state: [rows] row-wise, else [rows, ...]."""
    square = tf.square(gradient)
    if kind == "adagrad":
        return square
    return tf.reduce_mean(square, axis=list(range(1, gradient.shape.rank)))


def step(
    gradient: tf.Tensor, state: tf.Tensor, learning_rate: tf.Tensor | float, epsilon: float
) -> tf.Tensor:
    """What is subtracted from the rows: [rows, ...]. The state ([rows] or [rows, ...]) is the new
    one, this gradient's square included."""
    scale = learning_rate * tf.math.rsqrt(state + epsilon)
    trailing = [1] * (gradient.shape.rank - scale.shape.rank)
    shape = tf.concat([tf.shape(scale), tf.constant(trailing, tf.int32)], 0)
    return gradient * tf.reshape(scale, shape)
