"""A dynamic table's state as NumPy arrays by key: what a checkpoint holds, for any sharding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from modules.embeddings import key_map
from modules.embeddings.dynamic import TOLD, TOTALS, DynamicTable, shard_of
from modules.embeddings.shard import CLEAN
from modules.embeddings.table import NUM_RESERVED


class DynamicState(NamedTuple):
    """One shard's; k keys are admitted, t tail rows are the shard's."""

    keys: np.ndarray
    """int64 [k]."""
    places: np.ndarray
    """int64 [k], in the map."""
    last_seen: np.ndarray
    """int32 [k], steps."""
    rows: np.ndarray
    """float32 [k, dim]."""
    state: np.ndarray
    """float32 [k] or [k, dim], the optimizer's."""
    shared_rows: np.ndarray
    """float32 [3 + t, dim]: reserved rows, then the tail."""
    shared_state: np.ndarray
    """float32 [3 + t] or [3 + t, dim]."""
    cells: np.ndarray
    """uint8 [n], the sketch."""
    counters: np.ndarray
    """int64, the totals."""


def export_state(table: DynamicTable) -> DynamicState:
    """Copies a shard's state to the host; nothing may train it meanwhile."""
    keys = table.keys.numpy().reshape(-1)
    (places,) = np.nonzero(keys != key_map.FREE)
    rows, state = table.rows.numpy(), table.state.numpy()
    shared = np.r_[:NUM_RESERVED, NUM_RESERVED + table.capacity : table.num_rows]
    return DynamicState(
        keys=keys[places],
        places=places,
        last_seen=table.last_seen.numpy()[places],
        rows=rows[NUM_RESERVED + places],
        state=state[NUM_RESERVED + places],
        shared_rows=rows[shared],
        shared_state=state[shared],
        cells=table.cells.numpy(),
        counters=table.counters.numpy(),
    )


def import_state(table: DynamicTable, shards: Sequence[DynamicState]) -> None:
    """Takes a shard's part of what was exported.

    With as many shards and the same capacity as before, everything is as it was. Otherwise all
    rows and their optimizer state are, but keys are placed anew, the sketch is empty and the
    totals count from here.

    Args:
      shards: all of the table's, 0, 1, ….

    Raises:
      ValueError: another dim, optimizer or number of tail rows; or no room for all keys.
    """
    _check(table, shards)
    own = shards[table.shard_index] if len(shards) == table.num_shards else None
    if own is None or len(own.cells) != table.cells.shape[0]:
        own = _own_part(table, shards)
    keys, last_seen = np.zeros(table.capacity, np.int64), np.zeros(table.capacity, np.int32)
    keys[own.places], last_seen[own.places] = own.keys, own.last_seen
    rows, state = table.rows.numpy(), table.state.numpy()
    rows[NUM_RESERVED + own.places], state[NUM_RESERVED + own.places] = own.rows, own.state
    shared = np.r_[:NUM_RESERVED, NUM_RESERVED + table.capacity : table.num_rows]
    rows[shared], state[shared] = own.shared_rows, own.shared_state
    table.keys.assign(keys.reshape(table.keys.shape))
    table.last_seen.assign(last_seen)
    table.rows.assign(rows)
    table.state.assign(state)
    table.touched.assign(np.full(table.num_rows, CLEAN, np.uint8))
    table.cells.assign(own.cells)
    table.counters.assign(own.counters)


def _own_part(table: DynamicTable, shards: Sequence[DynamicState]) -> DynamicState:
    keys = np.concatenate([s.keys for s in shards])
    owner = shard_of(tf.constant(keys), table.sizes.tail_rows, table.num_shards).numpy()
    mine = owner == table.shard_index
    counters = np.zeros(table.counters.shape, np.int64)
    counters[0] = mine.sum()  # admitted
    counters[TOLD] = counters[TOTALS]

    def own_of(what: str) -> np.ndarray:
        return np.concatenate([getattr(s, what) for s in shards])[mine]

    def shared_of(what: str) -> np.ndarray:
        parts = [getattr(s, what) for s in shards]
        tail = np.empty((table.sizes.tail_rows, *parts[0].shape[1:]), np.float32)
        for index, part in enumerate(parts):
            tail[index :: len(parts)] = part[NUM_RESERVED:]
        return np.concatenate(
            [parts[0][:NUM_RESERVED], tail[table.shard_index :: table.num_shards]]
        )

    return DynamicState(
        keys=keys[mine],
        places=_places(table, keys[mine]),
        last_seen=own_of("last_seen"),
        rows=own_of("rows"),
        state=own_of("state"),
        shared_rows=shared_of("shared_rows"),
        shared_state=shared_of("shared_state"),
        cells=np.zeros(table.cells.shape, np.uint8),
        counters=counters,
    )


def _places(table: DynamicTable, keys: np.ndarray) -> np.ndarray:
    """Places for all keys in an empty map."""
    stored = tf.Variable(tf.zeros_like(table.keys))
    waiting = keys
    while len(waiting):
        places = key_map.free_slots(stored, tf.constant(waiting)).numpy()
        placed = places != key_map.ABSENT
        if not placed.any():
            raise ValueError(
                f"table {table.name!r}: no room for {len(waiting)} of {len(keys)} keys in a shard"
                f" with capacity {table.capacity}; give `dynamic` a larger capacity"
            )
        key_map.write(stored, tf.constant(places[placed]), tf.constant(waiting[placed]))
        waiting = waiting[~placed]
    return key_map.find(stored, tf.constant(keys)).numpy()


def _check(table: DynamicTable, shards: Sequence[DynamicState]) -> None:
    tail_rows = sum(len(s.shared_rows) - NUM_RESERVED for s in shards)
    found = shards[0].rows.shape[1:], shards[0].state.shape[1:], tail_rows
    expected = tuple(table.rows.shape[1:]), tuple(table.state.shape[1:]), table.sizes.tail_rows
    if found != expected:
        raise ValueError(
            f"table {table.name!r}: a row, its optimizer state and the number of tail rows are"
            f" {expected} here, {found} in what is to be imported"
        )
