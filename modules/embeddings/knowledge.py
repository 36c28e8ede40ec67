"""Vectors that another model extracted, as frozen tables looked up by 62-bit keys.

The model holds them and exports them with itself, so it is served with the version that it was
trained with (KEEP §5.3), by one process. `serving/knowledge` is for those who can't hold them.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
import tf_keras as keras

USER, ITEM, USER_CATEGORY = "user", "item", "user_category"
_COLUMNS = {
    USER: ("user_id",),
    ITEM: ("item_id",),
    USER_CATEGORY: ("user_id", "category"),
}
NOTHING = -1
"""The key of a missing id: never found."""
_BUCKETS = 2**62
_MIX = 0x5851F42D4C957F2D


def keys_of(ids: tf.Tensor) -> tf.Tensor:
    """string or int [...] -> int64 keys: 62 bits of FarmHash's Fingerprint64 of the id's text.

    Among 10^8 ids the odds of one shared key are 0.1%. Missing ('' or -1) is `NOTHING`.
    """
    text = ids if ids.dtype == tf.string else tf.strings.as_string(ids)
    missing = tf.equal(ids, "" if ids.dtype == tf.string else -1)
    return tf.where(missing, tf.constant(NOTHING, tf.int64), _hashed(text))


def pair_keys(users: tf.Tensor, categories: tf.Tensor) -> tf.Tensor:
    """Keys of (user, category), int64, of two such arrays; `NOTHING` where one is."""
    missing = tf.equal(users, NOTHING) | tf.equal(categories, NOTHING)
    mixed = (users * _MIX + categories) & (_BUCKETS - 1)
    return tf.where(missing, tf.constant(NOTHING, tf.int64), mixed)


def read(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """An export's vectors: kind -> keys int64 [N], ascending, and float32 [N, D].

    Args:
      path: folder of Parquet files with `embedding` fixed_size_list<float>[D] and `user_id`,
        `item_id`, or `user_id` and `category`: what the knowledge centre publishes
        (docs/knowledge.md).

    Raises:
      ValueError: no such file; another's columns; an id that comes twice; a vector that isn't
        finite. Names the file.
    """
    files = sorted(pathlib.Path(path).glob("*.parquet"))
    if not files:
        raise ValueError(f"knowledge.path: no *.parquet file in {path}")
    parts: dict[str, list] = {}
    for file in files:
        table = pq.read_table(file)
        there = tuple(c for c in ("user_id", "item_id", "category") if c in table.column_names)
        kinds = [kind for kind, columns in _COLUMNS.items() if columns == there]
        if not kinds or "embedding" not in table.column_names:
            raise ValueError(
                f"{file}: needs embedding with user_id, item_id, or user_id and category; it has"
                f" {', '.join(table.column_names)}"
            )
        with tf.init_scope():  # values, also where a graph is being built
            keys = [keys_of(tf.constant(table[c].to_pylist(), tf.string)) for c in there]
            key = keys[0] if len(keys) == 1 else pair_keys(*keys)
        embedding = table["embedding"].combine_chunks()
        vectors = embedding.flatten().to_numpy().reshape(table.num_rows, -1)
        if not np.isfinite(vectors).all():
            raise ValueError(f"{file}: an embedding isn't finite")
        parts.setdefault(kinds[0], []).append((key.numpy(), vectors))
    return {kind: _sorted(kind, path, *zip(*some, strict=True)) for kind, some in parts.items()}


class KnowledgeTable(keras.layers.Layer):
    """Frozen vectors by key, brought to a root mean square of one; zeros where there is none.

    (Embeddings of another model may be of any scale, and the product K_u ⊙ K_i of its square.)

    Args:
      keys: int64 [N], ascending and distinct.
      vectors: float32 [N, D].
    """

    def __init__(self, keys: np.ndarray, vectors: np.ndarray, name: str, **kwargs: Any):
        super().__init__(name=name, autocast=False, **kwargs)
        self.dim = vectors.shape[1]
        scale = np.sqrt(np.mean(np.square(vectors))) or 1.0
        self._keys = self._frozen("keys", keys)
        self._vectors = self._frozen("vectors", (vectors / scale).astype(np.float32))

    def call(self, keys: tf.Tensor) -> tf.Tensor:
        """int64 [...] -> float32 [..., D]."""
        flat = tf.reshape(keys, [-1])
        place = tf.minimum(tf.searchsorted(self._keys, flat), self._keys.shape[0] - 1)
        found = tf.equal(tf.gather(self._keys, place), flat)
        vectors = tf.where(found[:, tf.newaxis], tf.gather(self._vectors, place), 0.0)
        return tf.reshape(vectors, tf.concat([tf.shape(keys), [self.dim]], 0))

    def _frozen(self, name: str, values: np.ndarray) -> tf.Variable:
        return self.add_weight(
            name=name,
            shape=values.shape,
            dtype=values.dtype,
            initializer=lambda shape, dtype, **_: tf.constant(values, dtype),
            trainable=False,
            experimental_autocast=False,
        )


def _hashed(text: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(text, _BUCKETS)


def _sorted(kind: str, path: str, keys: tuple, vectors: tuple) -> tuple[np.ndarray, np.ndarray]:
    if len({part.shape[1] for part in vectors}) > 1:
        raise ValueError(f"{path}: {kind} vectors of different widths")
    all_keys, places = np.unique(np.concatenate(keys), return_index=True)
    if len(all_keys) < sum(map(len, keys)):
        raise ValueError(f"{path}: a {kind} comes twice")
    return all_keys, np.concatenate(vectors)[places].astype(np.float32)
