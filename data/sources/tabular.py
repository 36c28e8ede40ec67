"""Any Parquet, CSV(.gz) or JSONL(.gz) files, by the spec's column names.

`source.path` is a glob of event files, `source.users` one of user files (needed for context
channels and tasks per user). CSV is text and cast by the spec, multi-valued fields being
separated by `|`; Parquet and JSONL keep their types.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from data.columns import (
    Chunk,
    Column,
    File,
    SourceError,
    event_columns,
    require_columns,
    user_columns,
)
from data.sources import delimited, json_lines
from data.spec import Spec

BATCH_ROWS = 1 << 18


def find(spec: Spec, data_root: str) -> tuple[File, ...]:
    """The globs' files, by name. Raises `SourceError` for none, or a missing column."""
    source = spec.source
    needed = user_columns(spec)
    if not source.users and len(needed) > 1:
        uses = ", ".join(column.use for column in needed[1:])
        raise SourceError(f"source.users: no user table given, but there is {uses}")
    users = _glob(data_root, source.users, "source.users") if source.users else []
    logs = _glob(data_root, source.path, "source.path")
    files = [File(path, "users", i) for i, path in enumerate(users)]
    files += [File(path, "events", len(users) + i) for i, path in enumerate(logs)]
    for file in files:
        columns = _columns(file, spec)
        require_columns(file.path, _names(file.path, columns), columns)
    return tuple(files)


def read(file: File, spec: Spec) -> Iterator[Chunk]:
    """The rows of one file."""
    columns = _columns(file, spec)
    kind = _kind(file.path)
    if kind == "csv":
        yield from delimited.read_csv(file.path)
    elif kind == "jsonl":
        for chunk in json_lines.read(file.path, columns):
            yield _with_all_columns(chunk, columns)
    else:
        yield from _read_parquet(file.path)


def _columns(file: File, spec: Spec) -> tuple[Column, ...]:
    return user_columns(spec) if file.role == "users" else event_columns(spec)


def _glob(data_root: str, pattern: str, key: str) -> list[str]:
    full = os.path.join(data_root, pattern)
    paths = sorted(p for p in glob.glob(full, recursive=True) if os.path.isfile(p))
    if not paths:
        raise SourceError(f"{key}: no files match {full}")
    return paths


def _kind(path: str) -> str:
    name = path.removesuffix(".gz")
    for ends, kind in (((".csv",), "csv"), ((".jsonl", ".json"), "jsonl")):
        if name.endswith(ends):
            return kind
    if path.endswith(".parquet"):
        return "parquet"
    raise SourceError(f"{path}: unknown kind of file. Use .parquet, .csv(.gz) or .jsonl(.gz)")


def _names(path: str, columns: tuple[Column, ...]) -> list[str]:
    kind = _kind(path)
    try:
        if kind == "csv":
            return delimited.header(path)
        if kind == "jsonl":
            return json_lines.keys(path, columns)
        return pyarrow.parquet.read_schema(path).names
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: can't be read: {' '.join(str(error).split())}") from None


def _read_parquet(path: str) -> Iterator[Chunk]:
    first = 1
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
        rows = np.arange(first, first + batch.num_rows)
        first += batch.num_rows
        yield Chunk(pa.Table.from_batches([batch]), rows, text=False)


def _with_all_columns(chunk: Chunk, columns: tuple[Column, ...]) -> Chunk:
    """A JSON key may be left out of any row, so of a whole block."""
    table = chunk.table
    for column in columns:
        if column.source not in table.column_names:
            table = table.append_column(column.source, pa.nulls(table.num_rows))
    return Chunk(table, chunk.rows, chunk.text, dead_letters=chunk.dead_letters)
