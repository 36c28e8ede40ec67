"""The hash table against a dict, with keys that want the same slots."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.knowledge import hash_index

# Few low halves and few high halves: long probes, and keys equal in one half only.
KEYS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def _filled(keys: list[tuple[int, int]]) -> np.ndarray:
    table = np.zeros((3, hash_index.capacity_for(len(keys))), np.uint64)
    cut = len(keys) // 2
    for first, last in ((0, cut), (cut, len(keys))):
        piece = np.array(keys[first:last], np.uint64).reshape(-1, 2)
        assert hash_index.insert(table, piece, first) is None
    return table


@given(st.lists(KEYS, min_size=1, unique=True), st.lists(KEYS), st.data())
def test_finds_what_a_dict_finds_also_after_erasing(keys, queries, data):
    rows = {key: row for row, key in enumerate(keys)}
    table = _filled(keys)
    erased = data.draw(st.lists(st.sampled_from(keys), unique=True))
    gone = hash_index.find(table, np.array(erased, np.uint64).reshape(-1, 2))
    table[:, gone] = hash_index.ERASED
    for key in erased:
        del rows[key]
    asked = [*queries, *keys]
    slots = hash_index.find(table, np.array(asked, np.uint64).reshape(-1, 2))
    found = np.where(slots >= 0, hash_index.rows_of(table, slots), -1)
    assert found.tolist() == [rows.get(key, -1) for key in asked]


@given(st.lists(KEYS, min_size=1, unique=True), st.data())
def test_a_key_that_comes_twice_is_told(keys, data):
    again = data.draw(st.sampled_from(keys))
    table = np.zeros((3, hash_index.capacity_for(len(keys) + 1)), np.uint64)
    assert hash_index.insert(table, np.array([*keys, again], np.uint64), 0) is not None
    table = _filled([*keys, (77, 77)])
    assert hash_index.insert(table, np.array([again], np.uint64), len(keys)) == len(keys)


def test_is_at_most_half_full():
    assert [hash_index.capacity_for(n) for n in (1, 2, 3, 4, 5, 500_000)] == [
        2, 4, 8, 8, 16, 1 << 20,
    ]  # fmt: skip
