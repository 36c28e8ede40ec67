"""Whose instances these are, as a number by which users are chosen for good."""

from __future__ import annotations

import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.features import as_ragged

SHARE, HELD_OUT = 6, 8
"""What users are chosen for; a choice doesn't follow from another, nor from the hash that splits
them into train and eval."""
_PLACES = 2**30


def place(
    serialized: tf.Tensor, transform_output: tft.TFTransformOutput, spec: Spec, choice: int
) -> tf.Tensor:
    """Each user's own number in [0, 1), the same for all instances of a user.

    Args:
      serialized: transformed instances, string [n].
      choice: `SHARE` or `HELD_OUT`.

    Returns:
      float64 [n].
    """
    wanted = {"user_id": transform_output.transformed_feature_spec()["user_id"]}
    parsed = as_ragged(tf.io.parse_example(serialized, wanted), spec)
    user_ids = parsed["user_id"].flat_values
    hashed = tf.strings.to_hash_bucket_strong(user_ids, _PLACES, key=[choice, 2020])
    return tf.cast(hashed, tf.float64) / _PLACES
