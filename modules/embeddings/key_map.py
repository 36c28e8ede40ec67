"""Keys -> slots, in one int64 variable: a hash map with buckets of eight places and two choices.

A key stands in one of the eight places of either of its two buckets, and the place's number is
its slot: no pointers and no free list, 8 bytes a slot, at any filling. Against TensorFlow's own
tables (10⁶ keys, this project's 2-core box): `MutableHashTable` takes 49 bytes a key and
`DenseHashTable` 56; they find 20,000 keys in 1.0 and 0.65 CPU ms, this in 2 to 3 (0.15 µs a key).
A variable can also be placed on a parameter server, checkpointed and exported like any other.

References: Azar et al., 1999 (two choices); the buckets are those of HierarchicalKV (NVIDIA).
"""

from __future__ import annotations

import tensorflow as tf

from modules.embeddings.hashing import bucket

BUCKET = 8
"""Places of a bucket; a map's capacity is a multiple of it."""
FREE = 0
"""What stands in a free place (row PAD, which no map is asked to hold)."""
ABSENT = -1


def find(stored: tf.Variable | tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Slots of keys.

    Args:
      stored: int64 [buckets, BUCKET], a key or FREE in every place.
      keys: int64 [n], none of them FREE.

    Returns:
      int64 [n] in [0, buckets · BUCKET), ABSENT where a key isn't there.
    """
    choices = _choices(stored, keys)  # [n, 2]
    places = tf.gather(stored, choices)  # [n, 2, BUCKET]
    hit = tf.reshape(tf.equal(places, keys[:, tf.newaxis, tf.newaxis]), [-1, 2 * BUCKET])
    at = tf.argmax(tf.cast(hit, tf.int8), axis=1)
    chosen = tf.gather(choices, at // BUCKET, batch_dims=1)
    return tf.where(tf.reduce_any(hit, axis=1), chosen * BUCKET + at % BUCKET, ABSENT)


def free_slots(stored: tf.Variable | tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """A free slot for every key, in the emptier of its buckets; nothing is written.

    Keys that want the same bucket get different places of it, as many as are free; asking the
    others again, after these were written, gives them their second choice.

    Args:
      stored: as in `find`.
      keys: int64 [n], distinct and absent.

    Returns:
      int64 [n], distinct but for ABSENT: nothing was left in that bucket.
    """
    choices = _choices(stored, keys)
    free = tf.equal(tf.gather(stored, choices), FREE)  # [n, 2, BUCKET]
    emptier = tf.argmax(tf.reduce_sum(tf.cast(free, tf.int32), axis=2), axis=1)
    chosen = tf.gather(choices, emptier, batch_dims=1)
    free = tf.gather(free, emptier, batch_dims=1)
    # The key with rank r among those of its bucket takes the (r + 1)th free place.
    nth_free = tf.cumsum(tf.cast(free, tf.int64), axis=1)
    taken = free & tf.equal(nth_free, _rank_among_equals(chosen)[:, tf.newaxis] + 1)
    place = tf.argmax(tf.cast(taken, tf.int8), axis=1)
    return tf.where(tf.reduce_any(taken, axis=1), chosen * BUCKET + place, ABSENT)


def write(stored: tf.Variable, slots: tf.Tensor, keys: tf.Tensor) -> tf.Operation | tf.Tensor:
    """Puts keys (or FREE) into distinct slots; both int64 [n]."""
    places = tf.stack([slots // BUCKET, slots % BUCKET], axis=1)
    return stored.scatter_nd_update(places, keys)


def _choices(stored: tf.Variable | tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """[n] -> the keys' two buckets, int64 [n, 2]; now and then the same one twice."""
    num_buckets = stored.shape[0]
    return tf.stack([bucket(keys, num_buckets, stream) for stream in (0, 1)], axis=1)


def _rank_among_equals(values: tf.Tensor) -> tf.Tensor:
    """int64 [n]: how many equal values stand before each."""
    order = tf.argsort(values, stable=True)
    ordered = tf.gather(values, order)
    first = tf.searchsorted(ordered, ordered, out_type=tf.int64)
    rank = tf.range(tf.size(values, tf.int64), dtype=tf.int64) - first
    return tf.scatter_nd(order[:, tf.newaxis], rank, tf.shape(values))
