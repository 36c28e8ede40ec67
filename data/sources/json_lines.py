"""JSON, one object a line, in blocks. Not a format of its own: `tabular` reads it."""

from __future__ import annotations

import collections
import io
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.json

from data.columns import Chunk, Column, SourceError
from data.dead_letters import DeadLetter
from data.sources import delimited


def keys(path: str, columns: tuple[Column, ...]) -> list[str]:
    """The keys in the file's first block."""
    for chunk in read(path, columns):
        return chunk.table.column_names
    return []


def read(path: str, columns: tuple[Column, ...]) -> Iterator[Chunk]:
    """The rows of a JSONL(.gz) file, typed, without lines that aren't JSON objects or have
    a value of another type than the rest of the column in its block.

    Args:
      path: the file.
      columns: what will be read of it: text that looks like a time stays text.

    Raises:
      SourceError: values of one column differ in a way that can't be told row by row.
    """
    text = [c.source for c in columns if c.reading in ("category", "string", "user")]
    first = 1
    with delimited.open_stream(path) as stream:
        for block in _blocks(stream):
            lines, numbers = _lines(block, first)
            first += block.count(b"\n")
            letters: list[DeadLetter] = []
            table = _parse(lines, text)
            if table is None:
                lines, numbers, letters = _take_out_bad(lines, numbers, path)
                table = _parse(lines, text)
            if table is None:
                raise SourceError(
                    f"{path}: between lines {numbers[0]} and {numbers[-1]}, the objects in some"
                    " column hold values of different types. Write them with one type"
                )
            yield Chunk(table, numbers, text=False, dead_letters=tuple(letters))


def _blocks(stream: pa.NativeFile) -> Iterator[bytes]:
    rest = stream.read(delimited.BLOCK_BYTES)
    while piece := stream.read(delimited.BLOCK_BYTES):
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        if newline:
            yield whole + newline
    if rest.strip():
        yield rest


def _lines(block: bytes, first: int) -> tuple[list[bytes], np.ndarray]:
    """Lines that aren't blank, and their numbers."""
    lines = block.split(b"\n")
    filled = [i for i, line in enumerate(lines) if line and not line.isspace()]
    return [lines[i] for i in filled], first + np.array(filled, np.int64)


def _parse(lines: list[bytes], text: list[str]) -> pa.Table | None:
    """None if Arrow can't: some line is malformed, or a column's type varies."""
    if not lines:
        return pa.table({})
    block = b"\n".join(lines) + b"\n"
    try:
        table = _read_json(block, None)
        guessed = [f for f in table.schema if f.name in text and "timestamp" in str(f.type)]
        if not guessed:
            return table
        lists = [pa.types.is_list(field.type) for field in guessed]
        types = [pa.list_(pa.string()) if is_list else pa.string() for is_list in lists]
        names = [field.name for field in guessed]
        return _read_json(block, pa.schema(zip(names, types, strict=True)))
    except pa.ArrowInvalid:
        return None


def _read_json(block: bytes, schema: pa.Schema | None) -> pa.Table:
    return pyarrow.json.read_json(
        io.BytesIO(block),
        read_options=pyarrow.json.ReadOptions(block_size=len(block) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
    )


def _take_out_bad(
    lines: list[bytes], numbers: np.ndarray, path: str
) -> tuple[list[bytes], np.ndarray, list[DeadLetter]]:
    """The slow way, for a block with a malformed line only."""
    rows: list[dict | None] = []
    reasons: dict[int, str] = {}
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError as error:
            row, reasons[i] = None, f"not JSON: {error}"
        if row is not None and not isinstance(row, dict):
            row, reasons[i] = None, "not a JSON object"
        elif row is not None and _parse([line], []) is None:
            row, reasons[i] = None, "a key twice, a number out of range or broken text"
        rows.append(row)
    kinds: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for row in rows:
        for key, value in (row or {}).items():
            kinds[key][_kind(value)] += 1
    for counts in kinds.values():
        del counts[_ANY]
    usual = {key: counts.most_common(1)[0][0] for key, counts in kinds.items() if counts}
    for i, row in enumerate(rows):
        for key, value in (row or {}).items():
            if _kind(value) not in (_ANY, usual.get(key)):
                reasons[i] = f"{key}: {_kind(value)} where the column has {usual[key]}"
    letters = [
        DeadLetter(path, int(numbers[i]), why, lines[i].decode(errors="replace"))
        for i, why in sorted(reasons.items())
    ]
    good = [i for i in range(len(lines)) if i not in reasons]
    return [lines[i] for i in good], numbers[good], letters


_ANY = "nothing"
"""What fits a column of any type: null, or a list without values."""


def _kind(value: object) -> str:
    if isinstance(value, list):
        kinds = {_kind(v) for v in value} - {_ANY}
        return f"list of {' and '.join(sorted(kinds))}" if kinds else _ANY
    names = {bool: "true/false", int: "number", float: "number", str: "text", dict: "object"}
    return names.get(type(value), _ANY)
