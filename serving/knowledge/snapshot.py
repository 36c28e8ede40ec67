"""One version in memory-mapped files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from serving.knowledge import erasure, hash_index, manifest
from serving.knowledge.failures import corrupt
from serving.knowledge.store import Knowledge


class Snapshot:
    """A version directory, open for reading; what is deleted on disk stays readable here.

    Attributes:
      version: its number.
    """

    def __init__(self, folder: pathlib.Path, *, check: bool = True):
        """
        Args:
          folder: named by the version.
          check: read all of it and compare checksums: as long as the disk takes, and then the
            files are in memory. Without, opening costs nothing and damage shows as wrong numbers.

        Raises:
          OSError: it isn't there, or can't be read.
          errors.ServingError: DATA_LOSS, naming the damaged file.
        """
        while not self._open(folder, check):
            with locked(folder, fcntl.LOCK_EX):
                erasure.finish(folder)

    def _open(self, folder: pathlib.Path, check: bool) -> bool:
        """False if an erasure has to be finished first."""
        with locked(folder, fcntl.LOCK_SH):
            if erasure.is_pending(folder):
                return False
            described = manifest.read(folder)
            if str(described.version) != folder.name:
                raise corrupt(f"{folder}: its manifest is of version {described.version}")
            if check:
                manifest.verify(folder, described)
            self.version = described.version
            self._tables = {
                kind: (described.index(folder, kind), described.vectors(folder, kind))
                for kind in described.kinds
            }
            return True

    def get(self, wanted: Mapping[str, np.ndarray]) -> Knowledge:
        """As `store.Store.get`."""
        vectors, found = {}, {}
        for kind, keys in wanted.items():
            if kind in self._tables:
                vectors[kind], found[kind] = _gather(*self._tables[kind], keys)
            else:
                vectors[kind] = np.zeros((len(keys), 0), np.float32)
                found[kind] = np.zeros(len(keys), bool)
        return Knowledge(self.version, vectors, found)


def _gather(
    index: np.ndarray, vectors: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    slots = hash_index.find(index, keys)
    found = slots >= 0
    rows = np.where(found, hash_index.rows_of(index, slots), 0)
    answer = vectors[rows].astype(np.float32, copy=False)
    # Another process may erase meanwhile: the key first, then the vector. So a key that is still
    # there after the vector was read says that the vector was whole.
    found &= hash_index.holds(index, slots, keys)
    if not found.all():
        answer[~found] = 0
    return answer, found


@contextlib.contextmanager
def locked(folder: pathlib.Path, how: int) -> Iterator[None]:
    """Holds a lock on a directory, shared or exclusive, among processes and threads.

    The system lets go of it when its holder dies.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
