"""Rows of large tables on disk, in chunks, whatever shards they are held in.

A chunk is a tensor bundle of `ids` int64 [n] (row numbers of the whole table, distinct), `rows`
[n, dim] (the dtype at rest) and `state` float32 [n] or [n, dim] (of the optimizer).
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from modules.training.checkpoint import bundle
from modules.training.checkpoint.draft import Draft
from modules.training.checkpoint.error import CheckpointError, DamagedError
from modules.training.checkpoint.manifest import Table
from modules.training.checkpoint.store import Checkpoint

MERGED_CHUNK_ROWS = 1 << 20
"""Rows of a merged chunk: 72 MB at dim 16 in float32."""


class Rows(NamedTuple):
    """Some rows of a table: ids int64 [n], rows [n, dim], state float32 [n] or [n, dim]."""

    ids: np.ndarray
    rows: np.ndarray
    state: np.ndarray

    def where(self, chosen: np.ndarray) -> Rows:
        """Those that a bool [n] chooses; without copying when it chooses all."""
        if chosen.all():
            return self
        return Rows(self.ids[chosen], self.rows[chosen], self.state[chosen])


def chunk_prefix(table: str, shard: int, num_shards: int, chunk: int | str) -> str:
    """Where a chunk of a shard is, below a checkpoint's folder."""
    return f"tables/{table}/{shard}-of-{num_shards}/{chunk}"


def write_chunk(prefix: str, ids: np.ndarray, rows: np.ndarray, state: np.ndarray) -> None:
    """Writes rows to an absolute prefix.

    Raises:
      CheckpointError: they can't be written.
    """
    bundle.write(prefix, {"ids": ids, "rows": rows, "state": state})


def read_chunk(prefix: str) -> Rows:
    """Reads the rows of an absolute prefix.

    Raises:
      DamagedError: the chunk is missing, truncated or changed; names it.
    """
    reader = bundle.Reader(prefix)
    if set(reader.shapes) != {"ids", "rows", "state"}:
        raise DamagedError(f"{prefix} is not a chunk of a table: holds {sorted(reader.shapes)}")
    found = Rows(reader["ids"], reader["rows"], reader["state"])
    if not len(found.ids) == len(found.rows) == len(found.state):
        raise DamagedError(f"{prefix}: ids, rows and state are of different lengths")
    return found


def chunks(checkpoint: Checkpoint, table: str) -> list[str]:
    """Absolute prefixes of a table's chunks, the oldest first.

    Restoring them in this order gives every row its newest value.

    Raises:
      CheckpointError: the checkpoint has no such table.
    """
    _table(checkpoint, table)
    return [
        str(c.folder / prefix)
        for c in checkpoint.chain
        if table in c.manifest.tables
        for prefix in c.manifest.tables[table].chunks
    ]


def require_shape(checkpoint: Checkpoint, table: str, num_rows: int, dim: int) -> None:
    """Checks that the checkpoint can fill a table.

    Raises:
      CheckpointError: it has no such table, or one of another shape.
    """
    saved = _table(checkpoint, table)
    if (saved.num_rows, saved.dim) != (num_rows, dim):
        raise CheckpointError(
            f"{checkpoint.folder}: table {table!r} was saved as {saved.num_rows} x {saved.dim}, "
            f"but is {num_rows} x {dim} now"
        )


def read_chunks(checkpoint: Checkpoint, table: str) -> Iterator[Rows]:
    """All touched rows since initialization, a chunk in memory at a time, the oldest first.

    Raises:
      CheckpointError: the checkpoint has no such table; or a DamagedError naming the chunk.
    """
    for prefix in chunks(checkpoint, table):
        yield _of_table(prefix, checkpoint.manifest.tables[table])


def merge_chain(draft: Draft, tables: dict[str, Table]) -> dict[str, Table]:
    """Replaces a draft's changes by every row touched since initialization.

    The draft then needs no other checkpoint. Costs reading the whole chain and writing its
    distinct rows; memory is a byte a row of one shard, and two chunks.

    Args:
      tables: the draft's, already written below its folder.

    Returns:
      The merged tables, for `Draft.commit`.

    Raises:
      CheckpointError: a chunk can't be read or written.
    """
    found = [(folder, m.tables) for folder, m in draft.ancestors.items()]
    found.append((draft.folder, tables))
    merged = {}
    for name in sorted({name for _, of_name in found for name in of_name}):
        sources = [(folder, of_name[name]) for folder, of_name in found if name in of_name]
        merged[name] = merge(sources, draft.folder, name)
    for table in tables.values():
        for prefix in table.chunks:
            _remove(draft.folder / prefix)
    draft.ancestors = {}
    return merged


def merge(
    sources: Sequence[tuple[pathlib.Path, Table]],
    folder: pathlib.Path,
    name: str,
    chunk_rows: int = MERGED_CHUNK_ROWS,
) -> Table:
    """Writes the newest value of every row of a table, in the newest source's shards.

    Args:
      sources: folders of checkpoints and what they hold of the table, the oldest first.
      folder: of the merged checkpoint.

    Raises:
      CheckpointError: a chunk can't be read or written.
    """
    newest = sources[-1][1]
    written = []
    for shard in range(newest.shards):
        newest_rows = _newest_rows(sources, newest, shard)
        for number, part in enumerate(_repacked(newest_rows, chunk_rows)):
            prefix = chunk_prefix(name, shard, newest.shards, f"merged-{number:06d}")
            write_chunk(str(folder / prefix), *part)
            written.append(prefix)
    return newest.model_copy(update={"chunks": written})


def _newest_rows(
    sources: Sequence[tuple[pathlib.Path, Table]], newest: Table, shard: int
) -> Iterator[Rows]:
    """From the newest chunk to the oldest: the rows of a shard that no newer chunk had."""
    seen = np.zeros(-(-newest.num_rows // newest.shards), bool)
    for folder, table in reversed(sources):
        for prefix in reversed(_chunks_of_shard(folder, table, shard, newest.shards)):
            found = _of_table(prefix, newest)
            if table.shards != newest.shards:
                found = found.where(found.ids % newest.shards == shard)
            local = found.ids // newest.shards
            fresh = ~seen[local]
            seen[local] = True
            yield found.where(fresh)


def _repacked(parts: Iterable[Rows], chunk_rows: int) -> Iterator[Rows]:
    """The same rows in parts of exactly `chunk_rows`, the last one shorter."""
    waiting: list[Rows] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part.ids)
        if count >= chunk_rows:
            joined = _joined(waiting)
            whole = count - count % chunk_rows
            for start in range(0, whole, chunk_rows):
                yield Rows(*(array[start : start + chunk_rows] for array in joined))
            waiting, count = [Rows(*(array[whole:] for array in joined))], count - whole
    if count:
        yield _joined(waiting)


def _joined(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _of_table(prefix: str, table: Table) -> Rows:
    found = read_chunk(prefix)
    if found.rows.shape[1:] != (table.dim,):
        raise DamagedError(f"{prefix}: rows are {found.rows.shape}, but dim is {table.dim}")
    if len(found.ids) and not 0 <= found.ids.min() <= found.ids.max() < table.num_rows:
        raise DamagedError(f"{prefix}: an id is not in [0, {table.num_rows})")
    return found


def _table(checkpoint: Checkpoint, table: str) -> Table:
    if table not in checkpoint.manifest.tables:
        raise CheckpointError(
            f"{checkpoint.folder} has no table {table!r}, only {sorted(checkpoint.manifest.tables)}"
        )
    return checkpoint.manifest.tables[table]


def _chunks_of_shard(folder: pathlib.Path, saved: Table, shard: int, num_shards: int) -> list[str]:
    """Shard s of m and shard t of n share rows only if s = t modulo gcd(m, n)."""
    common = math.gcd(saved.shards, num_shards)
    of_shard = [(_shard_of(prefix), prefix) for prefix in saved.chunks]
    return [str(folder / prefix) for s, prefix in of_shard if s % common == shard % common]


def _shard_of(prefix: str) -> int:
    return int(prefix.split("/")[-2].partition("-of-")[0])


def _remove(prefix: pathlib.Path) -> None:
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        path.unlink()
