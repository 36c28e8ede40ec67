"""Gradient reversal (Ganin & Lempitsky 2015, §3): features learn to hide from a classifier."""

from __future__ import annotations

import tensorflow as tf


def reverse_gradient(x: tf.Tensor, scale: float) -> tf.Tensor:
    """y = x, of any shape, but dL/dx = -scale · dL/dy."""

    @tf.custom_gradient
    def reversed_identity(x: tf.Tensor) -> tuple:
        return tf.identity(x), lambda dy: -scale * dy

    return reversed_identity(x)
