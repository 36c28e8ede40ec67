"""Initial rows as a pure function of the table's seed and the row's number.

Every placement and every number of shards starts from equal tables, nobody ships initial values,
and a checkpoint need only hold the rows that were trained.
"""

from __future__ import annotations

import hashlib

import numpy as np
import tensorflow as tf

_MIX = (0x85EBCA6B, 0xC2B2AE35)  # of MurmurHash3's 32-bit finalizer (Appleby, 2011; public domain)


def table_seed(name: str, seed: int) -> int:
    """A table's own seed in [0, 2³²), from its name and the run's seed."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def initial_rows(rows: tf.Tensor, dim: int, scale: float, seed: int) -> tf.Tensor:
    """Uniform in ±scale. Element j of row r is hash(r, seed) · c_j mod 2³², read as a fraction.

    The hash is a bijection of 32 bits, the c_j are odd: each element by itself is as uniform as
    the hash. Three cheap operations an element.

    Args:
      rows: int64 [n], row numbers in the whole table.
      seed: the table's seed (`table_seed`).

    Returns:
      float32 [n, dim].
    """
    low = tf.cast(rows, tf.uint32)
    high = tf.cast(tf.bitwise.right_shift(rows, tf.constant(32, tf.int64)), tf.uint32)
    key = _mixed(_mixed(low) ^ tf.constant(seed % 2**32, tf.uint32) ^ _mixed(high))
    bits = tf.bitcast(key[:, tf.newaxis] * tf.constant(_column_factors(dim)), tf.int32)
    return tf.cast(bits, tf.float32) * (scale / 2**31)


def _mixed(x: tf.Tensor) -> tf.Tensor:
    """MurmurHash3's finalizer, uint32 -> uint32; 0 stays 0."""
    for shift, factor in zip((16, 13), _MIX, strict=True):
        x = _folded(x, shift) * tf.constant(factor, tf.uint32)
    return _folded(x, 16)


def _folded(x: tf.Tensor, shift: int) -> tf.Tensor:
    return x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))


def _column_factors(dim: int) -> np.ndarray:
    """uint32 [dim], odd; the first ones are equal for every dim."""
    return np.random.Generator(np.random.PCG64(0)).integers(2**32, size=dim, dtype=np.uint32) | 1
