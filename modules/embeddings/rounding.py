"""Stochastic rounding, so that a 16-bit table can learn from steps below its precision."""

from __future__ import annotations

import tensorflow as tf

# Fraction bits and the exponent of the smallest normal number (IEEE 754 binary16; bfloat16).
_FORMATS = {tf.float16: (10, -14), tf.bfloat16: (7, -126)}


def stochastic(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Rounds up or down at random, the nearer the likelier: the expectation is x itself.

    What `dtype` represents exactly is unchanged. Gupta et al., 2015.

    Args:
      x: float32 [...], finite and within the range of `dtype`.
      dtype: float16 or bfloat16.
    """
    fraction_bits, smallest = _FORMATS[dtype]
    exponent_only = tf.constant(0x7F800000, tf.int32)
    magnitude = tf.bitcast(tf.maximum(tf.abs(x), 2.0**smallest), tf.int32) & exponent_only
    power = tf.bitcast(magnitude, tf.float32)  # the power of two at or below |x|
    scaled = x / power * 2.0**fraction_bits  # exact: only the exponent moves
    below = tf.floor(scaled)
    up = tf.random.uniform(tf.shape(x)) < scaled - below
    return tf.cast((below + tf.cast(up, tf.float32)) * 2.0**-fraction_bits * power, dtype)
