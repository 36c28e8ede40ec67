"""A key's value in Redis: its vectors of all versions, one record after the other.

A record is the version (int64), the length of what follows (int64) and the vector, padded with
zeros to a multiple of 8 bytes; all little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_HEADER = 2
"""Words of 8 bytes before a record's vector."""


def pack(version: int, vectors: np.ndarray) -> list[bytes]:
    """A record for each vector [N, D]."""
    words = -(-vectors.shape[1] * vectors.itemsize // 8)
    records = np.zeros((len(vectors), _HEADER + words), "<u8")
    records[:, 0], records[:, 1] = version, 8 * words
    payload = records.view(vectors.dtype)[:, _HEADER * 8 // vectors.itemsize :]
    payload[:, : vectors.shape[1]] = vectors
    return [record.tobytes() for record in records]


def version_bytes(version: int) -> bytes:
    """How a record begins."""
    return version.to_bytes(8, "little")


def pick(
    values: Sequence[bytes | None], version: int, dtype: np.dtype, dim: int
) -> tuple[np.ndarray, np.ndarray]:
    """One version's vectors of N values, None where Redis has no such key.

    Returns:
      float32 [N, dim], zero where there is no record of that version; and whether there is one,
      bool [N].

    Raises:
      ValueError, IndexError: a value isn't made of records.
    """
    held = [value or b"" for value in values]
    words = np.frombuffer(b"".join(held), "<u8").view(np.int64)
    lengths = np.fromiter(map(len, held), np.int64, len(held)) // 8
    ends = np.cumsum(lengths)
    at = ends - lengths
    found = np.zeros(len(held), bool)
    active = np.flatnonzero(at < ends)
    while active.size:
        here = at[active]
        hit = words[here] == version
        found[active[hit]] = True
        at[active[~hit]] = here[~hit] + _HEADER + words[here[~hit] + 1] // 8
        active = active[~hit]
        active = active[at[active] < ends[active]]
    size = -(-dim * dtype.itemsize // 8)
    vectors = np.zeros((len(held), dim), np.float32)
    payload = words[(at[found] + _HEADER)[:, None] + np.arange(size)]
    vectors[found] = payload.view(dtype)[:, :dim]
    return vectors, found
