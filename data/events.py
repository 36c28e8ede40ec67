"""The event table: raw rows of any source, cast and checked by the spec (docs/contracts.md).

A source hands over `Chunk`s of raw rows; `conform` turns one into an Arrow table of events
(or users) with one column per reading of a source column, plus a `DeadLetter` for every row
that can't be used. `drop_duplicates` removes exact copies. All of it works on whole columns.
"""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.casting import Problems, cast, is_null, single_array
from data.columns import (
    IDENTITY,
    ORDER,
    TARGET,
    Chunk,
    Column,
    File,
    SourceError,
    event_columns,
)
from data.dead_letters import DeadLetter
from data.identity import row_identity
from data.spec import Spec


def conform(
    chunk: Chunk, file: File, columns: tuple[Column, ...]
) -> tuple[pa.Table, list[DeadLetter]]:
    """Casts a chunk's rows by the spec and takes out the malformed ones.

    Args:
      chunk: raw rows.
      file: where they are from.
      columns: `event_columns(spec)` or `user_columns(spec)`.

    Returns:
      The table: one column per `columns`, `$order` and `$identity`. Labels are float32, null
      where missing or where `$target` is false. And the malformed rows.

    Raises:
      SourceError: a column of a type that its reading can't use at all, such as a struct.
    """
    problems = list(chunk.problems)
    arrays: dict[str, pa.Array] = {}
    for column in columns:
        array = single_array(chunk.table[column.source])
        try:
            arrays[column.name], found = cast(array, column, chunk)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise SourceError(
                f"{file.path}: column {column.source!r} has type {array.type}, which can't be"
                f" read for {column.use}: {error}"
            ) from None
        problems += found
    if TARGET in chunk.table.column_names:
        _hide_labels(arrays, columns, single_array(chunk.table[TARGET]))
    arrays[ORDER] = pa.array((np.int64(file.number) << 40) + chunk.rows)
    times = [arrays[c.name] for c in columns if c.reading == "time"]
    arrays[IDENTITY] = pa.array(
        row_identity(chunk.table), mask=is_null(times[0]) if times else None, type=pa.uint64()
    )

    table = pa.table(arrays)
    bad = np.zeros(table.num_rows, bool)
    for mask, _ in problems:
        bad |= mask
    letters = list(chunk.dead_letters)
    if bad.any():
        letters += _dead_letters(chunk, file, bad, problems)
        table = table.filter(pa.array(~bad))
    return table, letters


def select_domain(table: pa.Table, spec: Spec) -> pa.Table:
    """The conformed events that `source.where` wants: others are gone, or have no label."""
    where = spec.source.where
    if where is None:
        return table
    column = single_array(table[f"{where.column}:category"]).cast(pa.string())
    wanted = pc.is_in(column, value_set=pa.array(where.values))
    if where.of == "events":
        return table.filter(wanted)
    columns = event_columns(spec)
    arrays = {name: single_array(table[name]) for name in table.column_names}
    _hide_labels(arrays, columns, wanted)
    return pa.table(arrays)


def drop_duplicates(table: pa.Table) -> tuple[pa.Table, int]:
    """Keeps the first of rows that are equal in all their fields. Returns also how many went."""
    identity = single_array(table[IDENTITY])
    compared = ~is_null(identity)
    keys = identity.fill_null(0).to_numpy()
    order = np.lexsort((table[ORDER].to_numpy(), keys, ~compared))
    repeated = np.zeros(table.num_rows, bool)
    same = (keys[order][1:] == keys[order][:-1]) & compared[order][1:] & compared[order][:-1]
    repeated[order[1:][same]] = True
    return table.filter(pa.array(~repeated)), int(repeated.sum())


def empty_table(columns: tuple[Column, ...]) -> pa.Table:
    """What `conform` gives for no rows at all."""
    raw = pa.table({column.source: pa.array([], pa.string()) for column in columns})
    chunk = Chunk(raw, np.zeros(0, np.int64), text=True)
    return conform(chunk, File("", "events", 0), columns)[0]


def _hide_labels(arrays: dict, columns: tuple[Column, ...], target: pa.Array) -> None:
    for column in columns:
        if column.reading in ("label", "oracle"):
            array = arrays[column.name]
            arrays[column.name] = pc.if_else(target, array, pa.scalar(None, array.type))


def _dead_letters(
    chunk: Chunk, file: File, bad: np.ndarray, problems: Problems
) -> list[DeadLetter]:
    """Only malformed rows come here, so going through them one by one is fine."""
    reasons: dict[int, list[str]] = {int(i): [] for i in np.flatnonzero(bad)}
    for mask, reason in problems:
        for i in np.flatnonzero(mask):
            reasons[int(i)].append(reason)
    raw = chunk.table.take(pa.array(list(reasons))).to_pylist()
    return [
        DeadLetter(file.path, int(chunk.rows[i]), "; ".join(dict.fromkeys(why)), _raw(row, chunk))
        for (i, why), row in zip(reasons.items(), raw, strict=True)
    ]


def _raw(row: dict, chunk: Chunk) -> str:
    if not chunk.text:
        return json.dumps(row, default=str)
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(["" if v is None else v for v in row.values()])
    return line.getvalue()
