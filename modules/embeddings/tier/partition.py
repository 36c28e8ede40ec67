"""Which rows of a batch are in which shard."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Partition(NamedTuple):
    """Rows ordered by shard, otherwise in their own order.

    Attributes:
      order: int64 [n], positions in the batch, shard by shard.
      local: [n], the rows' numbers within their shards, in that order.
      bounds: num_shards + 1 numbers; shard s has [bounds[s], bounds[s + 1]) of both.
    """

    order: np.ndarray
    local: np.ndarray
    bounds: list[int]

    def of(self, shard: int) -> slice:
        return slice(self.bounds[shard], self.bounds[shard + 1])


def partition(ids: np.ndarray, num_shards: int, local_dtype: type[np.integer]) -> Partition:
    """int64 [n] row numbers -> the rows by shard. NumPy sorts 16-bit keys by radix: O(n)."""
    shard = (ids % num_shards).astype(np.uint16)
    order = np.argsort(shard, kind="stable")
    counts = np.bincount(shard, minlength=num_shards)
    local = (ids[order] // num_shards).astype(local_dtype)
    return Partition(order, local, [0, *np.cumsum(counts).tolist()])
