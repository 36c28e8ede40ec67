"""Delimited text, in blocks: what the CSV-like sources share. Not a format of its own."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv

from data.casting import single_array
from data.columns import Chunk, SourceError
from data.dead_letters import DeadLetter

BLOCK_BYTES = 32 << 20


def open_stream(path: str) -> pa.NativeFile:
    """A file's bytes, decompressed if its name ends in .gz."""
    stream = pa.OSFile(path)
    return pa.CompressedInputStream(stream, "gzip") if path.endswith(".gz") else stream


def header(path: str) -> list[str]:
    """Column names of a CSV file. Raises `SourceError` if it has none, or one twice."""
    with open_stream(path) as stream:
        try:
            start = stream.read(1 << 20)
        except OSError as error:
            raise SourceError(f"{path}: can't be read to its end: {error}") from None
    first = start.decode("utf-8-sig", errors="replace").splitlines()[:1]
    if not first:
        raise SourceError(f"{path}: empty file, without even a header")
    names = next(csv.reader(first))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SourceError(f"{path}: more than one column is named {', '.join(twice)}. Rename them")
    return names


def read_csv(path: str, separator: str = "|") -> Iterator[Chunk]:
    """The rows of a CSV(.gz) file as text, '' being null, without those of a wrong length."""
    letters: list[DeadLetter] = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"{row.actual_columns} fields instead of {row.expected_columns}"
        letters.append(DeadLetter(path, row.number, reason, row.text))
        return "skip"

    names = header(path)
    with open_stream(path) as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            # Threads would lose the row numbers.
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=skip),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=[""],
                strings_can_be_null=True,
                check_utf8=False,
            ),
        )
        next_row, reported = 2, 0
        for batch in reader:
            table = pa.Table.from_batches([batch])
            rows = _skipping(next_row, batch.num_rows, [d.row for d in letters])
            next_row = int(rows[-1]) + 1 if len(rows) else next_row
            found, reported = letters[reported:], len(letters)
            yield _without_bad_text(Chunk(table, rows, True, separator, tuple(found)))
    if letters[reported:]:
        nothing = pa.table({name: pa.array([], pa.string()) for name in names})
        no_rows = np.zeros(0, np.int64)
        yield Chunk(nothing, no_rows, True, separator, tuple(letters[reported:]))


def _skipping(start: int, count: int, skipped: list[int]) -> np.ndarray:
    """The first `count` numbers from `start` on that aren't in `skipped`."""
    candidates = np.arange(start, start + count + len(skipped), dtype=np.int64)
    return np.setdiff1d(candidates, skipped, assume_unique=True)[:count]


def _without_bad_text(chunk: Chunk) -> Chunk:
    """Marks rows that aren't UTF-8, and makes them printable."""
    problems, table = [], chunk.table
    for i, name in enumerate(table.column_names):
        array = single_array(table[name])
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            # Rare, and a block at most: going through its values one by one is fine.
            raw = array.cast(pa.binary()).to_pylist()
            fixed = [None if v is None else v.decode(errors="replace") for v in raw]
            changed = [f is not None and v != f.encode() for v, f in zip(raw, fixed, strict=True)]
            problems.append((np.array(changed), f"{name}: not UTF-8"))
            table = table.set_column(i, name, pa.array(fixed, pa.string()))
    return dataclasses.replace(chunk, table=table, problems=tuple(problems))
