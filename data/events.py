"""The event table: raw rows of any source, cast and checked by the spec (docs/contracts.md).

A source hands over `Chunk`s of raw rows; `conform` turns one into an Arrow table of events
(or users) with one column per reading of a source column, plus a `DeadLetter` for every row
that can't be used. `drop_duplicates` removes exact copies. All of it works on whole columns.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data.dead_letters import DeadLetter
from data.spec import INTERVAL, Channel, IdChannel, Scope, Spec, Task, table_setting

ORDER = "$order"
"""int64: number of the row's file (in name order) · 2⁴⁰ + its row. Breaks ties of time."""
TARGET = "$target"
"""bool, optional, of a source's raw rows: false for a row that is history, never a target."""
IDENTITY = "$identity"
"""uint64: hash of all of the row's fields; null for a row without a time, which isn't
compared, as a repeated behaviour can't be told from a repeated row there."""


class SourceError(ValueError):
    """Input that can't be used as a whole. The message names the file and the fix."""


@dataclasses.dataclass(frozen=True)
class File:
    """One input file."""

    path: str
    role: Literal["events", "history", "users"]
    number: int
    """Place among the inputs; events without a time come in this order."""
    joined: tuple[str, ...] = ()
    """Side tables that its rows are joined with."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Raw rows of a file, under the file's column names."""

    table: pa.Table
    rows: np.ndarray
    """int64 [n]: line or row number of each."""
    text: bool
    """Everything was text, and is cast by the spec; else types pass through."""
    separator: str = "|"
    """Between the values of a multi-valued text field."""
    dead_letters: tuple[DeadLetter, ...] = ()
    """Rows that could not even be split into fields."""
    problems: tuple[tuple[np.ndarray, str], ...] = ()
    """(bool [n], reason) of rows that the source knows to be malformed."""


Reading = Literal["user", "time", "category", "int", "string", "dense", "label", "oracle"]


@dataclasses.dataclass(frozen=True)
class Column:
    """One reading of a source column. Channels that read it alike share it."""

    name: str
    source: str
    reading: Reading
    use: str
    """What the spec wants it for, for error messages."""
    multi_valued: bool = False
    task: Task | None = None


def id_dtype(spec: Spec, channel: IdChannel) -> Literal["int", "string"]:
    """The type of an id channel's values: its table's `dtype`, int unless given."""
    return table_setting(spec.tables[channel.table_name], "dtype", "int")


def _reading(spec: Spec, channel: Channel) -> Reading:
    return id_dtype(spec, channel) if isinstance(channel, IdChannel) else channel.kind


def channel_column(spec: Spec, channel: Channel) -> str:
    """The channel's column in the event or user table, e.g. `tag:category[]`."""
    multi = "[]" if getattr(channel, "multi_valued", False) else ""
    return f"{channel.source_column}:{_reading(spec, channel)}{multi}"


def event_columns(spec: Spec) -> tuple[Column, ...]:
    """What an event has: user, time, sequence and candidate channels, labels per impression."""
    columns = [
        Column(spec.user, spec.user, "user", "the user's id (spec key `user`)"),
        Column(spec.time, spec.time, "time", "the event's time (spec key `time`)"),
        *_channels(spec, "sequence"),
        *_channels(spec, "candidate"),
        *_labels(spec, "impression"),
    ]
    return _distinct(columns)


def user_columns(spec: Spec) -> tuple[Column, ...]:
    """What a user has: an id, context channels and labels per user."""
    columns = [
        Column(spec.user, spec.user, "user", "the user's id (spec key `user`)"),
        *_channels(spec, "context"),
        *_labels(spec, "user"),
    ]
    return _distinct(columns)


def _distinct(columns: list[Column]) -> tuple[Column, ...]:
    """One of each name, with all uses."""
    distinct: dict[str, Column] = {}
    for column in columns:
        earlier = distinct.get(column.name)
        uses = column.use if earlier is None else f"{earlier.use}, {column.use}"
        distinct[column.name] = dataclasses.replace(column, use=uses)
    return tuple(distinct.values())


def _channels(spec: Spec, scope: Scope) -> list[Column]:
    return [
        Column(
            channel_column(spec, c),
            c.source_column,
            _reading(spec, c),
            f"{scope} channel {c.name!r}",
            getattr(c, "multi_valued", False),
        )
        for c in spec.scope(scope)
        if c.source_column != INTERVAL
    ]


def _labels(spec: Spec, per: str) -> list[Column]:
    columns = []
    for task in (t for t in spec.tasks if t.per == per):
        use = f"task {task.name!r}"
        columns.append(
            Column(task.label_feature, task.label, "label", f"label of {use}", task=task)
        )
        if task.oracle:
            oracle = Column(task.oracle_feature, task.oracle, "oracle", f"oracle of {use}")
            columns.append(oracle)
    return columns


def require_columns(path: str, present: list[str], columns: tuple[Column, ...]) -> None:
    """Raises `SourceError` naming the file, each missing column and what it is read for."""
    missing: dict[str, list[str]] = {}
    for column in columns:
        if column.source not in present:
            missing.setdefault(column.source, []).append(column.use)
    if missing:
        reasons = "; ".join(f"{name!r} ({', '.join(uses)})" for name, uses in missing.items())
        raise SourceError(
            f"{path}: missing column {reasons}. Add it to the file or change the spec."
            f" Columns found: {', '.join(present)}"
        )


# --- casting -------------------------------------------------------------------------------


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
            arrays[column.name], found = _cast(array, column, chunk)
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


Problems = list[tuple[np.ndarray, str]]


def _cast(array: pa.Array, column: Column, chunk: Chunk) -> tuple[pa.Array, Problems]:
    if column.multi_valued:
        return _cast_lists(array, column, chunk)
    return _CASTS[column.reading](_plain(array), column, chunk.text)


def _cast_lists(array: pa.Array, column: Column, chunk: Chunk) -> tuple[pa.Array, Problems]:
    """Missing lists and missing elements alike become nothing: the list just gets shorter."""
    if chunk.text and _is_text(array.type):
        array = pc.split_pattern(array, chunk.separator)
    elif not _is_list(array.type):
        array = pa.ListArray.from_arrays(np.arange(len(array) + 1, dtype=np.int32), array)
    lengths = pc.list_value_length(array).fill_null(0).to_numpy()
    row = np.repeat(np.arange(len(array)), lengths)
    values, problems = _CASTS[column.reading](_plain(array.flatten()), column, chunk.text)
    present = ~is_null(values)
    counts = np.bincount(row[present], minlength=len(array))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, values.filter(pa.array(present)))
    return lists, [(np.bincount(row[m], minlength=len(array)) > 0, why) for m, why in problems]


def _category(array: pa.Array, column: Column, text: bool) -> tuple[pa.Array, Problems]:
    """Text, with '' for null; a typed source's numbers stay numbers (an anomaly later on)."""
    if pa.types.is_integer(array.type):
        return array.cast(pa.int64()), []
    if pa.types.is_floating(array.type):
        return array.cast(pa.float32()), []
    array = _as_text(array)
    return pc.if_else(pc.equal(array, ""), None, array), []


def _int_id(array: pa.Array, column: Column, text: bool) -> tuple[pa.Array, Problems]:
    if not text and _is_text(array.type):
        return array, []
    values, unreadable = integers(array)
    negative = pc.less(values, 0).fill_null(False).to_numpy(zero_copy_only=False)
    return values, [
        (unreadable, f"{column.source}: not an integer"),
        (negative, f"{column.source}: negative id"),
    ]


def _dense(array: pa.Array, column: Column, text: bool) -> tuple[pa.Array, Problems]:
    if not text and _is_text(array.type):
        return array, []
    return _finite(array, column)


def _time(array: pa.Array, column: Column, text: bool) -> tuple[pa.Array, Problems]:
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    values, unreadable = integers(array)
    return values, [(unreadable, f"{column.source}: not integer milliseconds")]


def _user(array: pa.Array, column: Column, text: bool) -> tuple[pa.Array, Problems]:
    ids = _as_text(array)
    absent = is_null(ids) | pc.equal(ids, "").fill_null(False).to_numpy(zero_copy_only=False)
    return ids, [(absent, f"{column.source}: no user id")]


def _oracle(array: pa.Array, column: Column, text: bool) -> tuple[pa.Array, Problems]:
    values, problems = _finite(array, column)
    v = values.fill_null(0).to_numpy()
    return values, [*problems, ((v < 0) | (v > 1), f"{column.source}: not a probability")]


def _label(array: pa.Array, column: Column, text: bool) -> tuple[pa.Array, Problems]:
    """float32: 0/1, class number or value; null where missing."""
    task = column.task
    assert task is not None, "a label column has its task"
    if task.type == "regression":
        return _finite(array, column)
    if task.type == "multiclass" or task.positive is not None:
        return _text_label(_as_text(array), column, task)
    values, problems = _finite(array, column)
    v = values.fill_null(0).to_numpy()
    wrong = ~np.isin(v, (0, 1)) & np.isfinite(v)
    return values, [
        *problems,
        (wrong, f"{column.source}: label of binary task {task.name!r} is neither 0 nor 1"),
    ]


def _text_label(array: pa.Array, column: Column, task: Task) -> tuple[pa.Array, Problems]:
    array = pc.if_else(pc.equal(array, ""), None, array)
    if task.type == "binary":
        positive = pc.is_in(array, value_set=pa.array(task.positive))
        return pc.if_else(pc.is_null(array), None, positive.cast(pa.float32())), []
    index = pc.index_in(array, value_set=pa.array(task.classes))
    wrong = is_null(index) & ~is_null(array)
    reason = f"{column.source}: label of task {task.name!r} is none of its classes"
    return index.cast(pa.float32()), [(wrong, reason)]


_CASTS = {
    "user": _user,
    "time": _time,
    "category": _category,
    "string": _category,
    "int": _int_id,
    "dense": _dense,
    "label": _label,
    "oracle": _oracle,
}


def _finite(array: pa.Array, column: Column) -> tuple[pa.Array, Problems]:
    """float32 values; (rows that aren't a finite number)."""
    values, unreadable = _floats(array)
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float32)
    return pa.array(narrow, mask=is_null(values)), [
        (unreadable, f"{column.source}: not a number"),
        (~np.isfinite(narrow) & ~unreadable, f"{column.source}: not a finite number"),
    ]


def _floats(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """float64 values; which ones are text that isn't a number."""
    unreadable = np.zeros(len(array), bool)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if not _is_text(array.type):
        return array.cast(pa.float64(), safe=False), unreadable
    array = pc.if_else(pc.equal(array, ""), None, array)
    try:
        return array.cast(pa.float64()), unreadable
    except pa.ArrowInvalid:
        numeric = pc.match_substring_regex(array, _NUMBER).fill_null(True)
        unreadable = ~numeric.to_numpy(zero_copy_only=False)
        return pc.if_else(numeric, array, None).cast(pa.float64()), unreadable


def integers(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """int64 values; which ones are text or a fraction."""
    if pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        return array.cast(pa.int64()), np.zeros(len(array), bool)
    if pa.types.is_floating(array.type):
        whole = pc.equal(pc.floor(array), array).fill_null(True)
        fits = pc.less(pc.abs(array), 2.0**53).fill_null(True)
        readable = pc.and_(whole, fits)
        whole = pc.if_else(readable, array, None).cast(pa.int64())
        return whole, ~readable.to_numpy(zero_copy_only=False)
    array = pc.if_else(pc.equal(array, ""), None, array)
    try:
        return array.cast(pa.int64()), np.zeros(len(array), bool)
    except pa.ArrowInvalid:
        digits = pc.replace_substring_regex(array, r"\.0*$", "")
        fits = pc.or_(pc.less(pc.utf8_length(digits), 19), pc.less_equal(digits, _LARGEST))
        readable = pc.and_(pc.match_substring_regex(array, _INTEGER), fits).fill_null(True)
        whole = pc.if_else(readable, digits, None).cast(pa.int64())
        return whole, ~readable.to_numpy(zero_copy_only=False)


_NUMBER = r"^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?$|^-?(?i:nan|inf|infinity)$"
"""What Arrow can cast, so a value fares the same whatever stands beside it."""
_INTEGER = r"^(-?\d{1,18}|\d{19})(\.0*)?$"
"""`12.0` is how pandas writes an integer column that has missing values."""
_LARGEST = str(2**63 - 1)
"""Of 19 digits, the largest in order of text too."""


def _plain(array: pa.Array) -> pa.Array:
    """Undoes encodings that don't change what a value is; text becomes `string`."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_binary(array.type) or pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    if pa.types.is_null(array.type):
        array = array.cast(pa.string())
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    return array


def _as_text(array: pa.Array) -> pa.Array:
    """Text of whatever it is: whole floats print as integers, true and false as 1 and 0."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    if pa.types.is_floating(array.type):
        whole, fractions = integers(array)
        return pc.if_else(pa.array(fractions), array.cast(pa.string()), whole.cast(pa.string()))
    return array.cast(pa.string())


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_)


def _is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_)


def is_null(array: pa.Array) -> np.ndarray:
    """bool [n]."""
    return array.is_null().to_numpy(zero_copy_only=False)


def single_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _hide_labels(arrays: dict, columns: tuple[Column, ...], target: pa.Array) -> None:
    for column in columns:
        if column.reading in ("label", "oracle"):
            array = arrays[column.name]
            arrays[column.name] = pc.if_else(target, array, pa.scalar(None, array.type))


# --- identity ------------------------------------------------------------------------------


def row_identity(table: pa.Table) -> np.ndarray:
    """uint64 [n]: equal for rows with equal fields (else, with odds of 2⁻⁶⁴, not)."""
    identity = np.zeros(table.num_rows, np.uint64)
    for column in table.columns:
        identity = identity * _MIX + _hash(single_array(column))
    return identity


_MIX = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0xD1B54A32D192ED03)
"""A null's hash: not that of 0."""


def _hash(array: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(array.type):
        lengths = array.type.list_size * (1 - is_null(array).astype(np.int32))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        array = pa.ListArray.from_arrays(offsets, array.drop_null().flatten())
    if _is_list(array.type) or pa.types.is_map(array.type):
        return _hash_lists(array)
    if pa.types.is_struct(array.type):
        fields = [array.field(i) for i in range(array.type.num_fields)]
        return row_identity(pa.table(fields, [str(i) for i in range(len(fields))]))
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.uint64)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    values = array.dictionary.to_numpy(zero_copy_only=False)
    hashes = np.append(pd.util.hash_array(values, categorize=False), _NULL)
    return hashes[array.indices.fill_null(-1).to_numpy()]


def _hash_lists(array: pa.Array) -> np.ndarray:
    lengths = pc.list_value_length(array).fill_null(0).to_numpy()
    starts = np.cumsum(lengths) - lengths
    place = np.arange(lengths.sum()) - np.repeat(starts, lengths)
    elements = (_hash(array.flatten()) + place.astype(np.uint64)) * _MIX
    hashes = lengths.astype(np.uint64)
    filled = lengths > 0
    hashes[filled] += np.add.reduceat(elements ^ (elements >> np.uint64(29)), starts[filled])
    return hashes


# --- dead letters --------------------------------------------------------------------------


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
