"""A vectorised open-addressing hash table from 128-bit keys to row numbers.

The table is uint64 [3, capacity], and a slot is one of its columns: both halves of a key, then
row + 1; a slot whose last field is 0 is empty. Linear probing from the key's low bits; at most
half full, so a search ends after 1.5 slots on average. It may be memory-mapped.
"""

from __future__ import annotations

import numpy as np

ERASED = np.array([[0], [0], [2**64 - 1]], np.uint64)
"""A slot whose key was erased: a search goes on past it.

Its key is 0, like an empty slot's, and no id has that key but with odds of 2^-128.
"""


def capacity_for(rows: int) -> int:
    """Slots for a table of `rows` keys: a power of two, at most half of it full."""
    return 1 << max(1, (2 * rows - 1).bit_length())


def insert(table: np.ndarray, keys: np.ndarray, first_row: int) -> int | None:
    """Adds keys uint64 [N, 2] as rows `first_row`, `first_row + 1`, ….

    Returns:
      None, or the row whose key was there already; the table is then unusable.
    """
    mask = table.shape[1] - 1
    rows = np.arange(first_row, first_row + len(keys), dtype=np.uint64)
    place = _home(keys, mask)
    waiting = np.arange(len(keys))
    while waiting.size:
        at = place[waiting]
        same = holds(table, at, keys[waiting])
        if same.any():
            return int(rows[waiting[same][0]])
        taken = table[2].take(at) != 0
        free = waiting[~taken]
        # Of keys that want one free slot the first gets it; the others look again, and find it.
        winners = free[np.unique(place[free], return_index=True)[1]]
        table[:2, place[winners]] = keys[winners].T
        table[2, place[winners]] = rows[winners] + np.uint64(1)
        moving = waiting[taken]
        place[moving] = (place[moving] + 1) & mask
        waiting = np.setdiff1d(waiting, winners, assume_unique=True)
    return None


def find(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The slot of each key uint64 [N, 2], int64 [N]; -1 where the key isn't in the table."""
    mask = table.shape[1] - 1
    slots = np.full(len(keys), -1, np.int64)
    active, place = np.arange(len(keys)), _home(keys, mask)
    while active.size:
        hit = holds(table, place, keys)
        slots[active[hit]] = place[hit]
        onward = ~hit & (table[2].take(place) != 0)
        active, place, keys = active[onward], (place[onward] + 1) & mask, keys[onward]
    return slots


def holds(table: np.ndarray, slots: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whether each slot int64 [N] holds the key uint64 [N, 2] beside it, bool [N]."""
    return (table[0].take(slots) == keys[:, 0]) & (table[1].take(slots) == keys[:, 1])


def rows_of(table: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """The row numbers in slots int64 [N] that hold keys, int64 [N]."""
    return table[2].take(slots).astype(np.int64) - 1


def _home(keys: np.ndarray, mask: int) -> np.ndarray:
    return (keys[:, 0] & np.uint64(mask)).astype(np.int64)
