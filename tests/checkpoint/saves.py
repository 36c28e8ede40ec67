"""Small saves, and damage done to them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from modules.training.checkpoint.manifest import Manifest, Table
from modules.training.checkpoint.store import Checkpoints
from modules.training.checkpoint.tables import chunk_prefix, merge_chain, write_chunk

NUM_ROWS = 40
DIM = 2
Values = dict[int, float]
"""Row -> what fills it; its state is one more."""


def write_part(
    folder: pathlib.Path, values: Values, num_shards: int, chunk_rows: int = 4
) -> dict[str, Table]:
    """Rows of the table 'item', as a trainer with `num_shards` shards writes them."""
    prefixes = []
    for shard in range(num_shards):
        ids = np.array([i for i in values if i % num_shards == shard], np.int64)
        for start in range(0, len(ids), chunk_rows):
            part = ids[start : start + chunk_rows]
            filled = np.array([values[int(i)] for i in part], np.float32)
            prefixes.append(chunk_prefix("item", shard, num_shards, start))
            rows = np.repeat(filled[:, np.newaxis], DIM, axis=1)
            write_chunk(str(folder / prefixes[-1]), part, rows, filled + 1)
    return {"item": Table(num_rows=NUM_ROWS, dim=DIM, shards=num_shards, chunks=prefixes)}


def save(
    store: Checkpoints, step: int, parent: int | None, values: Values, num_shards: int = 2
) -> Manifest:
    with store.begin(step, parent) as draft:
        tables = write_part(draft.folder, values, num_shards)
        if draft.needs_merge:
            tables = merge_chain(draft, tables)
        return draft.commit("single", tables)


def cut(path: pathlib.Path) -> None:
    """Truncates a file to half its size."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: pathlib.Path, position: int = -1) -> None:
    """Flips a bit of one byte."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def tree(folder: pathlib.Path) -> Mapping[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
