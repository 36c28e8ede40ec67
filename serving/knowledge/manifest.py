"""`manifest.json` of a snapshot: what its files hold, and their checksums.

A snapshot is a directory of raw little-endian files, and for each kind of vectors it has two:
`<kind>.vectors`, float32 or float16 [rows, dim], and `<kind>.index`, `hash_index`'s table. The
file `categories`, uint64 [C, 2], holds the keys of the categories its pairs are of.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Iterable

import numpy as np

from serving.knowledge import store
from serving.knowledge.failures import corrupt

NAME = "manifest.json"
CATEGORIES = "categories"
BLOCK = 1 << 20
"""Bytes a checksum covers: an erasure recomputes that much, not a file."""

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Kind:
    """The shapes of a kind's two files."""

    rows: int
    dim: int
    slots: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """
    Attributes:
      version: the snapshot's.
      dtype: of its vectors.
      kinds: kind -> shapes, for the kinds it has.
      checksums: file name -> CRC-32 of each `BLOCK` of it.
    """

    version: int
    dtype: np.dtype
    kinds: dict[str, Kind]
    checksums: dict[str, list[int]]

    def vectors(self, folder: pathlib.Path, kind: str, mode: str = "r") -> np.ndarray:
        """The mapped vectors [rows, dim]."""
        shape = (self.kinds[kind].rows, self.kinds[kind].dim)
        return _mapped(folder / vectors_file(kind), self.dtype, shape, mode)

    def index(self, folder: pathlib.Path, kind: str, mode: str = "r") -> np.ndarray:
        """The mapped hash index, uint64 [3, slots]."""
        shape = (3, self.kinds[kind].slots)
        return _mapped(folder / index_file(kind), np.dtype("<u8"), shape, mode)


def vectors_file(kind: str) -> str:
    return f"{kind}.vectors"


def index_file(kind: str) -> str:
    return f"{kind}.index"


def _mapped(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...], mode: str) -> np.ndarray:
    if mode != "w+" and path.stat().st_size != dtype.itemsize * shape[0] * shape[1]:
        raise corrupt(f"{path}: {path.stat().st_size} bytes, and {NAME} says {dtype} {shape}")
    # The bare array: np.memmap's own indexing is several times slower.
    return np.asarray(np.memmap(path, dtype, mode, shape=shape))  # type: ignore[call-overload]


def read(folder: pathlib.Path) -> Manifest:
    """
    Raises:
      OSError: no such file.
      errors.ServingError: DATA_LOSS, it can't be understood.
    """
    path = folder / NAME
    try:
        fields = json.loads(path.read_text())
        if fields["format"] != _FORMAT:
            raise corrupt(f"{path}: format {fields['format']}, and this program reads {_FORMAT}")
        kinds = {kind: Kind(**shape) for kind, shape in fields["kinds"].items()}
        if not set(kinds) <= set(store.KINDS):
            raise ValueError(f"kinds {sorted(kinds)}")
        return Manifest(fields["version"], np.dtype(fields["dtype"]), kinds, fields["checksums"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(f"{path}: is no manifest: {error!r}") from None


def write(manifest: Manifest, folder: pathlib.Path) -> None:
    """Replaces the manifest, durably and atomically."""
    fields = {
        "format": _FORMAT,
        "version": manifest.version,
        "dtype": manifest.dtype.name,
        "kinds": {kind: dataclasses.asdict(shape) for kind, shape in manifest.kinds.items()},
        "checksums": manifest.checksums,
    }
    write_durably(folder / NAME, json.dumps(fields))


def write_durably(path: pathlib.Path, text: str) -> None:
    """The file holds all of `text` or what it held before, also after a power cut."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    sync(partial)
    partial.rename(path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Waits until a file's bytes, or a directory's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksums(path: pathlib.Path) -> list[int]:
    """CRC-32 of each block of a file."""
    with path.open("rb") as file:
        return [zlib.crc32(block) for block in iter(lambda: file.read(BLOCK), b"")]


def checksum_blocks(path: pathlib.Path, blocks: Iterable[int]) -> dict[int, int]:
    """Block number -> its CRC-32."""
    sums = {}
    with path.open("rb") as file:
        for block in blocks:
            file.seek(block * BLOCK)
            sums[block] = zlib.crc32(file.read(BLOCK))
    return sums


def verify(folder: pathlib.Path, manifest: Manifest) -> None:
    """Reads all files. Raises DATA_LOSS, naming the file and place, if any isn't as written."""
    for name, wanted in manifest.checksums.items():
        there = checksums(folder / name)
        if len(there) != len(wanted):
            raise corrupt(f"{folder / name}: {len(there)} MiB, and {NAME} says {len(wanted)}")
        for block, (got, want) in enumerate(zip(there, wanted, strict=True)):
            if got != want:
                raise corrupt(
                    f"{folder / name}: damaged between bytes {block * BLOCK} and"
                    f" {(block + 1) * BLOCK}; remove the directory and publish the version anew"
                )
