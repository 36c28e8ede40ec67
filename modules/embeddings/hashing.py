"""Hashes of row numbers and keys, as graph ops: the same in training and in serving."""

from __future__ import annotations

import tensorflow as tf


def mix(ids: tf.Tensor, stream: int = 0) -> tf.Tensor:
    """A bijection of 64 bits for every stream, whose outputs look independent.

    Reference: splitmix64's finaliser (Steele et al., 2014; constants by D. Stafford).

    Args:
      ids: int32 or int64 [...].
      stream: which hash; non-negative.

    Returns:
      uint64 [...].
    """
    x = tf.bitcast(tf.cast(ids, tf.int64), tf.uint64) + _uint64((stream + 1) * 0x9E3779B97F4A7C15)
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _uint64(30)))
    x *= _uint64(0xBF58476D1CE4E5B9)
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _uint64(27)))
    x *= _uint64(0x94D049BB133111EB)
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _uint64(31)))


def bucket(ids: tf.Tensor, num_buckets: int, stream: int = 0) -> tf.Tensor:
    """int32 or int64 [...] -> int64 [...] in [0, num_buckets), num_buckets < 2³²."""
    high = tf.bitwise.right_shift(mix(ids, stream), _uint64(32))
    # high · n / 2³²: as even as a remainder, without the division.
    return tf.bitcast(tf.bitwise.right_shift(high * _uint64(num_buckets), _uint64(32)), tf.int64)


def _uint64(value: int) -> tf.Tensor:
    return tf.constant(value % 2**64, tf.uint64)
