"""What the fields of an example say together: each pair's product, in one pass over the fields."""

from __future__ import annotations

import tensorflow as tf


def bi_interaction(fields_FD: tf.Tensor) -> tf.Tensor:
    """Σ_{i<j} v_i ⊙ v_j = ½ · ((Σ_i v_i)² − Σ_i v_i²)   (NFM, He & Chua 2017, eq. 3-4)

    Its sum over D is the second-order part of a factorization machine, Σ_{i<j} <v_i, v_j>
    (Rendle 2010, lemma 3.1).

    Args:
      fields_FD: v_i, float [..., F, D].

    Returns:
      [..., D]; zeros of one field.
    """
    square_of_sum = tf.square(tf.reduce_sum(fields_FD, axis=-2))
    return 0.5 * (square_of_sum - tf.reduce_sum(tf.square(fields_FD), axis=-2))


def side_by_side(fields_BKFD: tf.Tensor) -> tf.Tensor:
    """[B, K, F, D] -> [B, K, F·D]."""
    B, K, _, _ = tf.unstack(tf.shape(fields_BKFD))
    return tf.reshape(fields_BKFD, [B, K, fields_BKFD.shape[-2] * fields_BKFD.shape[-1]])
