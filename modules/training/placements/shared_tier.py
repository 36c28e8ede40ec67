"""The sparse tier as the trainers of one run share it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modules.embeddings.tier.client import SparseTier
from modules.embeddings.tier.connection import Chunks, ShardStatistics

Recover = Callable[[int], Chunks | None]


class SharedTier:
    """Connected by the first `restore`, in which the chief brings the tables to what they are to
    be, while the other trainers wait.

    Args:
      connect: (recover) -> the tier.
      newest_chunks: of the run's newest checkpoint; None without one.
      chief: whether this trainer is the one that restores and saves.
      wait: for the other trainers to come here too.
    """

    def __init__(
        self,
        connect: Callable[[Recover], SparseTier],
        newest_chunks: Callable[[], Chunks | None],
        chief: bool,
        wait: Callable[[], Any],
    ):
        self._connect, self._newest_chunks = connect, newest_chunks
        self._chief, self._wait = chief, wait
        self._restored: Chunks = {}
        self._connected = False

    @functools.cached_property
    def _tier(self) -> SparseTier:
        tier = self._connect(self._recover)
        self._connected = True
        return tier

    def _recover(self, shard: int) -> Chunks:
        """What a server that came back empty is to hold: pushes since then are lost."""
        newest = self._newest_chunks() if self._connected else None
        return self._restored if newest is None else newest

    def restore(self, chunks: Mapping[str, list[str]]) -> None:
        """Brings the tables to what the chunks hold; every trainer must ask."""
        first, self._restored = not self._connected, chunks
        if self._chief:
            # Servers that are new were brought there by connecting.
            there = all(server.restores for server in self._tier.statistics())
            if not (first and there):
                self._tier.restore(chunks)
        self._wait()
        _ = self._tier

    def pull(self, ids: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `SparseTier.pull`."""
        return self._tier.pull(ids)

    def push(
        self, ids: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray], *, sequence: int
    ) -> None:
        """See `SparseTier.push`."""
        self._tier.push(ids, gradients, sequence=sequence)

    def save(self, folder: str) -> dict[str, dict[str, Any]]:
        """See `SparseTier.save`; for the chief."""
        return self._tier.save(folder)

    def end_save(self, ok: bool) -> None:
        """See `SparseTier.end_save`; for the chief."""
        self._tier.end_save(ok)

    def close(self) -> list[ShardStatistics]:
        """Disconnects; what this trainer had to do with each server."""
        if not self._connected:
            return []
        self._tier.close()
        return self._tier.statistics()
