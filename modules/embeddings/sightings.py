"""How often keys were seen lately, in memory that doesn't grow with the keys: a count-min sketch.

A key's count is the least of its cells', so it is never too low within a window of sightings,
and too high only if all of its cells were hit by others. Conservative update keeps that rare: a
sighting raises only the cells that are the least. When a window is over, all counts are halved.

References: Estan & Varghese, 2002 (conservative update); TinyLFU (Einziger et al., 2017).
"""

from __future__ import annotations

import tensorflow as tf

from modules.embeddings.hashing import bucket

HASHES = 2
MAX_COUNT = 255
_FIRST_STREAM = 8  # not the map's or the tail's hashes


def sight(cells: tf.Variable, keys: tf.Tensor) -> tf.Tensor:
    """Counts one sighting of each key.

    Args:
      cells: uint8 [n].
      keys: int64 [m], distinct.

    Returns:
      int32 [m]: sightings of each in this window, this one included, at most MAX_COUNT.
    """
    streams = range(_FIRST_STREAM, _FIRST_STREAM + HASHES)
    places = tf.stack([bucket(keys, cells.shape[0], stream) for stream in streams], axis=1)
    count = tf.reduce_min(tf.cast(tf.gather(cells, places), tf.int32), axis=1)
    count = tf.minimum(count + 1, MAX_COUNT)
    raised = tf.repeat(tf.cast(count, tf.uint8)[:, tf.newaxis], HASHES, axis=1)
    with tf.control_dependencies([cells.scatter_max(tf.IndexedSlices(raised, places))]):
        return tf.identity(count)


def halve(cells: tf.Variable) -> tf.Operation | tf.Tensor:
    """Ends a window."""
    return cells.assign(tf.bitwise.right_shift(cells.read_value(), tf.constant(1, tf.uint8)))


def distinct(cells: tf.Variable | tf.Tensor) -> tf.Tensor:
    """About how many keys have a count, float32 (linear counting; Whang et al., 1990)."""
    size = tf.cast(tf.size(cells), tf.float32)
    empty = tf.math.count_nonzero(tf.equal(cells, 0), dtype=tf.float32)
    return -size * tf.math.log(tf.maximum(empty, 1.0) / size) / HASHES
