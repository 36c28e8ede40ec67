"""Writes a snapshot's files; memory is bounded by a chunk of rows."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from serving.errors import invalid
from serving.knowledge import hash_index, keys, manifest
from serving.knowledge.store import Rows, check_dims, stored

_CHUNK = 1 << 16


def write_snapshot(
    folder: pathlib.Path, version: int, chunks: Iterable[Rows], dtype: np.dtype
) -> None:
    """Fills an empty directory; on return all is on disk.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, as `store.Store.publish`.
    """
    dims: dict[str, int] = {}
    counts: dict[str, int] = {}
    categories: set[bytes] = set()
    with contextlib.ExitStack() as files:
        opened: dict[str, tuple[BinaryIO, BinaryIO]] = {}
        for chunk in chunks:
            kind, width = chunk.kind, chunk.vectors.shape[1]
            if kind not in opened:
                opened[kind] = (
                    files.enter_context((folder / manifest.vectors_file(kind)).open("wb")),
                    files.enter_context(_keys_file(folder, kind).open("wb")),
                )
                dims[kind] = width
                check_dims(dims)
            if width != dims[kind]:
                raise invalid(f"{kind} vectors of {dims[kind]} floats and of {width}")
            opened[kind][0].write(stored(chunk.vectors, dtype).tobytes())
            opened[kind][1].write(chunk.keys.astype("<u8", copy=False).tobytes())
            counts[kind] = counts.get(kind, 0) + len(chunk.keys)
            categories.update(key.tobytes() for key in chunk.category_keys)
    counts = {kind: rows for kind, rows in counts.items() if rows}
    if not counts:
        raise invalid("there are no vectors to publish")
    kinds = {
        kind: manifest.Kind(rows, dims[kind], hash_index.capacity_for(rows))
        for kind, rows in counts.items()
    }
    described = manifest.Manifest(version, dtype, kinds, {})
    for kind in kinds:
        _write_index(folder, described, kind)
    names = [name(kind) for kind in kinds for name in (manifest.vectors_file, manifest.index_file)]
    if categories:
        (folder / manifest.CATEGORIES).write_bytes(b"".join(sorted(categories)))
        names.append(manifest.CATEGORIES)
    for name in names:
        manifest.sync(folder / name)
        described.checksums[name] = manifest.checksums(folder / name)
    manifest.write(described, folder)


def _keys_file(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """The keys in row order, until the index is written."""
    return folder / f"{kind}.keys"


def _write_index(folder: pathlib.Path, described: manifest.Manifest, kind: str) -> None:
    index = described.index(folder, kind, "w+")
    rows = described.kinds[kind].rows
    row_keys = np.memmap(_keys_file(folder, kind), "<u8", "r", shape=(rows, keys.BYTES // 8))
    for first in range(0, rows, _CHUNK):
        twice = hash_index.insert(index, np.asarray(row_keys[first : first + _CHUNK]), first)
        if twice is not None:
            raise invalid(f"row {twice} of the {kind} vectors has the key of an earlier row")
    _keys_file(folder, kind).unlink()
