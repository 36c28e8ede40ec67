"""Tables that must shrink: many ids composed from few stored rows.

A row number below `private_rows` (reserved ones and the frequent ids of the vocabulary) has a
stored row of its own. The tail, row numbers private_rows + t, shares `shared_rows` of them. A
compressed table is always small: a weight of the model, mirrored with it and never localized.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.channels import Compression
from modules.embeddings.hashing import bucket
from modules.embeddings.table import NUM_RESERVED, PAD, EmbeddingTable


class _CompressedTable(keras.layers.Layer):
    """What both have in common: an `EmbeddingTable` of the stored rows, under its own name.

    Args:
      num_rows: row numbers that may be asked for: private ones, then the tail.
      dim: width of a row.
      private_rows: row numbers with a stored row of their own, the reserved ones included.
      shared_rows: stored rows of the tail.
      seed, init_scale: of the stored rows, see `EmbeddingTable`.

    Raises:
      ValueError: private_rows leaves out a reserved row, or there are more than num_rows.
    """

    large = False

    def __init__(
        self,
        num_rows: int,
        dim: int,
        name: str,
        private_rows: int,
        shared_rows: int,
        seed: int = 0,
        init_scale: float = 0.05,
        **kwargs: Any,
    ):
        super().__init__(name=name, autocast=False, **kwargs)
        if not NUM_RESERVED <= private_rows <= num_rows:
            raise ValueError(
                f"table {name!r}: {private_rows} private rows of {num_rows}; the first"
                f" {NUM_RESERVED} rows, which are reserved, must be private"
            )
        self.num_rows = num_rows
        self.dim = dim
        self.private_rows = private_rows
        self.shared_rows = shared_rows
        self.seed = seed
        self.init_scale = init_scale
        self.stored = EmbeddingTable(
            private_rows + shared_rows,
            dim,
            name=name,
            seed=seed,
            init_scale=init_scale,
            dtype="float32",
        )

    def call(self, ids: tf.Tensor, rows: tf.Tensor | None = None) -> tf.Tensor:
        """int [...] in [0, num_rows) -> compute dtype [..., dim]; zeros where `ids` is `PAD`."""
        if rows is not None:
            raise ValueError(
                f"table {self.name!r} is compressed: a batch can't bring its rows along"
            )
        return tf.cast(self.lookup(ids), self.compute_dtype)

    @abc.abstractmethod
    def lookup(self, ids: tf.Tensor) -> tf.Tensor:
        """As `call`, but float32 [..., dim]."""

    def _shared(self, ids: tf.Tensor, index: tf.Tensor, otherwise: tf.Tensor | int) -> tf.Tensor:
        """Stored row `index` of the shared ones for ids of the tail, row `otherwise` for others."""
        in_tail = ids >= self.private_rows
        return self.stored(
            tf.where(in_tail, self.private_rows + index, tf.cast(otherwise, ids.dtype))
        )

    def _tail_numbers(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.maximum(ids - self.private_rows, 0)

    def get_config(self) -> dict:
        return super().get_config() | {
            "num_rows": self.num_rows,
            "dim": self.dim,
            "private_rows": self.private_rows,
            "shared_rows": self.shared_rows,
            "seed": self.seed,
            "init_scale": self.init_scale,
        }


class MultiHashTable(_CompressedTable):
    """row(t) = Σ_k stored[hash_k(t)]: two ids are alike only if all their hashes collide.

    Reference: Tito Svenstrup et al., 2017 (hash embeddings, without the importance weights).

    Args:
      hashes: k; the others are `_CompressedTable`'s.
    """

    def __init__(self, *args: Any, hashes: int = 2, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.hashes = hashes

    def lookup(self, ids: tf.Tensor) -> tf.Tensor:
        ids = tf.cast(ids, tf.int64)
        tail = self._tail_numbers(ids)
        # A private id reads its row once; PAD adds zeros, without a gradient.
        total = self._shared(ids, bucket(tail, self.shared_rows, 0), ids)
        for k in range(1, self.hashes):
            total += self._shared(ids, bucket(tail, self.shared_rows, k), PAD)
        return total

    def get_config(self) -> dict:
        return super().get_config() | {"hashes": self.hashes}


class QuotientRemainderTable(_CompressedTable):
    """row(t) = stored[t mod m] · (1 + stored[m + t div m]), element by element.

    No two ids have both the same quotient and the same remainder, so no two rows are one. m is
    the largest that leaves room for the quotients: the fewest ids share a remainder row. The 1
    lets a row start as its remainder row; a product of two small random rows would be tiny.

    Reference: Shi et al., 2020 (compositional embeddings using complementary partitions).

    Raises:
      ValueError: shared_rows is under 2·√(tail ids), the least that tells all of them apart.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.remainders = _remainders(
            self.name, self.num_rows - self.private_rows, self.shared_rows
        )

    def lookup(self, ids: tf.Tensor) -> tf.Tensor:
        ids = tf.cast(ids, tf.int64)
        tail = self._tail_numbers(ids)
        remainder = self._shared(ids, tail % self.remainders, ids)
        return remainder * (1.0 + self._shared(ids, self.remainders + tail // self.remainders, PAD))


CompressedTable = MultiHashTable | QuotientRemainderTable


def compressed_table(
    num_rows: int, dim: int, name: str, private_rows: int, compression: Compression, seed: int = 0
) -> CompressedTable:
    """The table that a spec's `compression` asks for; arguments as `_CompressedTable`'s."""
    sizes = (num_rows, dim, name, private_rows, compression.rows, seed)
    if compression.method == "quotient_remainder":
        return QuotientRemainderTable(*sizes)
    return MultiHashTable(*sizes, hashes=compression.num_hashes)


def _remainders(name: str, tail: int, shared_rows: int) -> int:
    """The largest m with m + ceil(tail / m) <= shared_rows."""
    root = math.isqrt(max(shared_rows**2 - 4 * tail, 0))
    m = (shared_rows + root) // 2
    if not m or m - (-tail // m) > shared_rows:
        least = 2 * math.isqrt(tail - 1) + 2
        raise ValueError(
            f"table {name!r}: {shared_rows} rows can't tell {tail} ids apart by quotient and"
            f" remainder; {least} can"
        )
    return m
