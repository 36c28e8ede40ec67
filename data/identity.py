"""Which rows are equal: a hash of all of a row's fields, whatever their types."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data.casting import is_list, is_null, single_array


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
    if is_list(array.type) or pa.types.is_map(array.type):
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
