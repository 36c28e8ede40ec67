"""A trainer's view of the sparse tier: rows by number, out and back."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from modules.embeddings.adagrad import AdagradKind
from modules.embeddings.shard import shard_rows
from modules.embeddings.tier import graph
from modules.embeddings.tier.connection import Chunks, Connection, Patience, ShardStatistics
from modules.embeddings.tier.layout import FloatType, Layout, TierTable
from modules.embeddings.tier.partition import Partition, partition

SAVE_CHUNK = 1 << 20
"""Rows looked at for one chunk of a checkpoint: bounds a save's memory beside the table."""
_PATIENCE = Patience()
_CALLS_AT_ONCE = 4  # of one server: fetchers, the pusher, a save
_Result = TypeVar("_Result")


class SparseTier:
    """Tables held by parameter servers; row r is in shard r % n, at address n.

    The first trainer to come initialises the tables (or restores them, if `recover` knows a
    checkpoint); others wait. All methods may be called from several threads, `push` from one.
    While a server is away the calls that need it wait; when it comes back empty, it alone is
    restored. Rows pulled beside another trainer's push may be half of one step, half of another.

    Args:
      addresses: host:port of the servers, by their index in the cluster.
      tables: by name; all trainers of a tier must agree.
      wire_dtype: of rows and gradients on the network (rounded to nearest).
      rest_dtype: of rows in the servers' memory; 16-bit ones are rounded stochastically.
      seed: the run's, of the initial rows.
      trainer: whose pushes `sequence` numbers. A server applies a number once in its life and
        this name's, so a trainer that starts again from an older step takes a new name.
      recover: shard -> chunks to restore an empty server from; None if there is no checkpoint.
      on_event: told of `shard_lost` and `shard_back`; called from any thread.

    Raises:
      TierError: a server can't be reached, holds other tables, or can't restore.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        tables: Mapping[str, TierTable],
        *,
        optimizer: AdagradKind,
        learning_rate: float,
        seed: int,
        trainer: str,
        recover: Callable[[int], Chunks | None],
        wire_dtype: FloatType = "float32",
        rest_dtype: FloatType = "float32",
        on_event: Callable[..., None] = lambda event, **fields: None,
        patience: Patience = _PATIENCE,
    ):
        if not re.fullmatch(r"[A-Za-z0-9._-]+", trainer):
            raise ValueError(f"trainer {trainer!r}: letters, digits, '.', '_' and '-' only")
        self._layout = Layout(dict(tables), optimizer, rest_dtype, seed, len(addresses))
        self._wire = np.dtype(tf.as_dtype(wire_dtype).as_numpy_dtype)
        self._ids = {
            name: graph.ids_dtype(table.num_rows, len(addresses)) for name, table in tables.items()
        }
        self._sequence = -1
        self._counting = threading.Lock()
        self._shards = [
            Connection(
                address,
                number,
                graph.build(
                    self._layout,
                    number,
                    learning_rate=learning_rate,
                    wire_dtype=wire_dtype,
                    trainer=trainer,
                ),
                self._layout,
                recover,
                on_event,
                patience,
            )
            for number, address in enumerate(addresses)
        ]
        self._threads = concurrent.futures.ThreadPoolExecutor(
            _CALLS_AT_ONCE * len(addresses), thread_name_prefix="sparse-tier"
        )
        with contextlib.ExitStack() as unless_connected:
            unless_connected.callback(self.close)
            self._on_all(Connection.connect)
            unless_connected.pop_all()

    def pull(self, ids: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Reads rows.

        Args:
          ids: int64 [U] by table, distinct; a table left out is not read.

        Returns:
          float32 [U, dim] by table, in the order of `ids`.
        """
        parts = self._partitions(ids)
        found = {
            name: np.empty([len(rows), self._layout.tables[name].dim], np.float32)
            for name, rows in ids.items()
        }

        def pull_from(shard: Connection) -> None:
            own = [parts[name].local[parts[name].of(shard.shard)] for name in self._layout.tables]
            if not any(map(len, own)):
                return
            pulled = shard.run(shard.graph.pull, *own)
            for name, rows in zip(self._layout.tables, pulled, strict=True):
                if len(rows):
                    found[name][parts[name].order[parts[name].of(shard.shard)]] = rows
            with self._counting:
                shard.statistics.pulls += 1
                shard.statistics.bytes_pulled += _bytes(own) + _bytes(pulled)

        self._on_all(pull_from)
        return found

    def push(
        self, ids: Mapping[str, np.ndarray], gradients: Mapping[str, np.ndarray], *, sequence: int
    ) -> None:
        """One optimizer step of the named rows, applied once whatever is lost on the way.

        Args:
          ids: int64 [U] by table, distinct; a table left out is not changed.
          gradients: float [U, dim] by table; exact zeros for row 0 (PAD).
          sequence: higher than that of the last push that returned; one that failed may be
            repeated under its own.
        """
        if sequence <= self._sequence:
            raise ValueError(f"push {sequence} after {self._sequence}: it would not be applied")
        parts = self._partitions(ids)
        sent = {
            name: np.asarray(gradients[name]).astype(self._wire, copy=False)[parts[name].order]
            if name in gradients
            else np.empty([0, table.dim], self._wire)
            for name, table in self._layout.tables.items()
        }

        def push_to(shard: Connection) -> None:
            cut = [(parts[name], parts[name].of(shard.shard), sent[name]) for name in sent]
            values = [part.local[own] for part, own, _ in cut] + [g[own] for _, own, g in cut]
            if not any(map(len, values)):
                return
            shard.run(shard.graph.push, np.int64(sequence), *values)
            with self._counting:
                shard.statistics.pushes += 1
                shard.statistics.bytes_pushed += _bytes(values)

        self._on_all(push_to)
        self._sequence = sequence

    def save(self, folder: str) -> dict[str, dict[str, Any]]:
        """Has every server write the rows touched since the last complete save below `folder`.

        Pushes may go on: a row is written as it is when its turn comes. `end_save` must follow.

        Returns:
          {table: {num_rows, dim, shards, chunks: prefixes relative to `folder`}}.

        Raises:
          TierError: a server couldn't write. After `end_save(False)` nothing is lost.
        """
        by_shard = self._on_all(lambda shard: self._save_shard(shard, folder))
        return {
            name: {
                "num_rows": table.num_rows,
                "dim": table.dim,
                "shards": len(self._shards),
                "chunks": [prefix for written in by_shard for prefix in written[name]],
            }
            for name, table in self._layout.tables.items()
        }

    def end_save(self, ok: bool) -> None:
        """The checkpoint is complete, or its rows stay touched."""
        self._on_all(lambda shard: shard.run(shard.graph.end_save, ok))

    def restore(self, chunks: Chunks) -> None:
        """Brings every table to what the chunks hold, also one that is further on."""
        self._on_all(lambda shard: shard.restore(chunks))
        self._sequence = -1

    def statistics(self) -> list[ShardStatistics]:
        """By shard, as of now."""
        with self._counting:
            return [dataclasses.replace(shard.statistics) for shard in self._shards]

    def close(self) -> None:
        """Ends the sessions; calls that wait for a server fail. The servers keep the tables."""
        for shard in self._shards:
            shard.close()
        self._threads.shutdown()

    def _partitions(self, ids: Mapping[str, np.ndarray]) -> dict[str, Partition]:
        unknown = ids.keys() - self._layout.tables.keys()
        if unknown:
            raise ValueError(f"the tier has no tables {sorted(unknown)}")
        nothing = np.empty(0, np.int64)
        return {
            name: partition(ids.get(name, nothing), len(self._shards), self._ids[name])
            for name in self._layout.tables
        }

    def _save_shard(self, shard: Connection, folder: str) -> dict[str, list[str]]:
        """Chunks by table; begun anew if the server lost its tables meanwhile."""
        while True:
            incarnation = shard.incarnation
            shard.run(shard.graph.begin_save)
            chunks = {name: self._save_table(shard, name, folder) for name in self._layout.tables}
            if shard.incarnation == incarnation:
                return chunks

    def _save_table(self, shard: Connection, name: str, folder: str) -> list[str]:
        below = f"tables/{name}/{shard.shard}-of-{len(self._shards)}"
        if tf.io.gfile.exists(f"{folder}/{below}"):
            tf.io.gfile.rmtree(f"{folder}/{below}")
        tf.io.gfile.makedirs(f"{folder}/{below}")
        count = shard_rows(self._layout.tables[name].num_rows, shard.shard, len(self._shards))
        chunks = []
        for number, low in enumerate(range(0, count, SAVE_CHUNK)):
            prefix = f"{below}/{number}"
            high = min(low + SAVE_CHUNK, count)
            if shard.save_chunk(name, low, high, f"{folder}/{prefix}"):
                chunks.append(prefix)
        return chunks

    def _on_all(self, act: Callable[[Connection], _Result]) -> list[_Result]:
        """On all shards at once, the last one in this thread. Raises the first error, after all."""
        *others, last = self._shards
        waiting = [self._threads.submit(act, shard) for shard in others]
        try:
            result = act(last)
        finally:
            concurrent.futures.wait(waiting)
        return [*(future.result() for future in waiting), result]


def _bytes(arrays: Sequence[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)
