"""Values cast to the types of the event table (docs/contracts.md), whole columns at a time.

`cast` picks the cast of a column's reading and tells which rows' values can't be cast, and
why. `integers`, `single_array`, `is_list` and `is_null` are for others that work on raw
columns.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.columns import Chunk, Column
from data.spec import Task

Problems = list[tuple[np.ndarray, str]]


def cast(array: pa.Array, column: Column, chunk: Chunk) -> tuple[pa.Array, Problems]:
    if column.multi_valued:
        return _cast_lists(array, column, chunk)
    return _CASTS[column.reading](_plain(array), column, chunk.text)


def _cast_lists(array: pa.Array, column: Column, chunk: Chunk) -> tuple[pa.Array, Problems]:
    """Missing lists and missing elements alike become nothing: the list just gets shorter."""
    if chunk.text and _is_text(array.type):
        array = pc.split_pattern(array, chunk.separator)
    elif not is_list(array.type):
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


def is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_)


def is_null(array: pa.Array) -> np.ndarray:
    """bool [n]."""
    return array.is_null().to_numpy(zero_copy_only=False)


def single_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
