"""Sizes and checksums of the files of a checkpoint."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
from pydantic import BaseModel, ConfigDict

_THREADS = 4
_READ_BYTES = 1 << 18
"""Fits a core's cache, so that the checksum runs at its full speed."""


class File(BaseModel):
    """Size in bytes and CRC-32C (Castagnoli) of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int
    crc32c: int


def describe(folder: pathlib.Path, names: Iterable[str], *, sync: bool = False) -> dict[str, File]:
    """Reads files below `folder` whole, several at a time.

    Args:
      sync: also makes them durable (fsync).

    Raises:
      OSError: a file can't be read or made durable.
    """

    def read(name: str) -> tuple[str, File]:
        return name, _read(folder / name, sync)

    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(threads.map(read, names))


def _read(path: pathlib.Path, sync: bool) -> File:
    size, crc = 0, 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            size += len(block)
            crc = google_crc32c.extend(crc, block)
        if sync:
            os.fsync(file.fileno())
    return File(bytes=size, crc32c=crc)
