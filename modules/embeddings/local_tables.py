"""Trains large tables whose shards are variables of this program.

That is: of one process, mirrored over devices, or on parameter servers under
ParameterServerStrategy. (The `hybrid` placement's are in a sparse tier, `modules/embeddings/tier`.)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from modules.embeddings import adagrad
from modules.embeddings import shard as shard_ops
from modules.embeddings.dynamic import DynamicTable
from modules.embeddings.table import EmbeddingTable

_SAVE_CHUNK = 1 << 20
"""Rows looked at for one chunk of a checkpoint: bounds a save's memory beside the table."""


class Shard(NamedTuple):
    """See `modules/embeddings/shard.py`; variables of the scope they were made in."""

    rows: tf.Variable
    state: tf.Variable
    touched: tf.Variable


class LocalTables(tf.Module):
    """Lookup and update of large tables by distinct rows, and their way to a checkpoint.

    A dynamic table has its own variables, which are those of the module and saved with them; here
    its keys are resolved and its rows trained like the others'.

    Tables that aren't `trainable` are frozen: looked up and restored, never written, and without
    optimizer state. (A dynamic one keeps what it came with; no key is admitted or evicted.)

    Must be made in the scope that the tables were made in.

    Args:
      tables: by name; only large ones.
      optimizer: 'rowwise_adagrad' or 'adagrad'.
      own_ids: every replica has other distinct rows (several hosts), not all the same.
    """

    def __init__(
        self,
        tables: Mapping[str, EmbeddingTable],
        optimizer: adagrad.AdagradKind = "rowwise_adagrad",
        own_ids: bool = False,
    ):
        super().__init__(name="local_tables")
        self._optimizer = optimizer
        self._own_ids = own_ids
        # New variables are broadcast to all hosts, which TensorFlow has no operation for in uint8.
        self._flag_dtype = tf.half if own_ids else tf.uint8
        self._names = tuple(tables)
        self._dynamic = {
            name: t.dynamic_rows for name, t in tables.items() if t.dynamic_rows is not None
        }
        plain = {name: table for name, table in tables.items() if name not in self._dynamic}
        self._dims = {name: (table.num_rows, table.dim) for name, table in plain.items()}
        self._gather: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
            name: _reader(table) for name, table in plain.items()
        }
        self._gather |= {name: table.gather for name, table in self._dynamic.items()}
        self._frozen = {name for name, table in tables.items() if not table.trainable}
        self._frozen_rows = {name: plain[name].shards for name in plain if name in self._frozen}
        self._shards = {
            name: [self._trained(rows) for rows in table.shards]
            for name, table in plain.items()
            if name not in self._frozen
        }

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def resolve(
        self, ids: Mapping[str, tf.Tensor], step: tf.Tensor | None = None
    ) -> dict[str, tf.Tensor]:
        """Ids of a batch -> what `gather` and `update` take: row numbers, or a dynamic table's
        slots; int64 [U] by table.

        Args:
          step: int64 scalar, of training: keys are sighted, admitted and evicted. None: nothing
            is changed.
        """
        return dict(ids) | {
            name: _slots(table, ids[name], None if name in self._frozen else step)
            for name, table in self._dynamic.items()
        }

    def gather(self, ids: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What `resolve` gave, int64 [U] by table -> float32 [U, dim]."""
        return {name: self._gather[name](rows) for name, rows in ids.items()}

    def update(
        self,
        ids: Mapping[str, tf.Tensor],
        gradients: Mapping[str, tf.Tensor],
        learning_rate: float,
    ) -> None:
        """One optimizer step of the named rows; in replica context.

        Args:
          ids: int64 [U] by table, of `resolve`.
          gradients: float32 [U, dim] by table that isn't frozen: this replica's share.
        """
        for name, table in self._dynamic.items():
            if name not in self._frozen:
                table.update(ids[name], gradients[name], learning_rate)
        for name, shards in self._shards.items():
            rows, summed = self._over_replicas(ids[name], gradients[name])
            count = len(shards)
            owner = tf.cast(rows % count, tf.int32)
            local = tf.dynamic_partition(rows // count, owner, count)
            parts = tf.dynamic_partition(summed, owner, count)
            for shard, own_ids, own_gradients in zip(shards, local, parts, strict=True):
                self._update_shard(shard, own_ids, own_gradients, learning_rate)

    def _update_shard(
        self, shard: Shard, ids: tf.Tensor, gradients: tf.Tensor, learning_rate: float
    ) -> None:
        def of_copy(rows, state, touched, ids, gradients):
            return shard_ops.update(
                rows, state, touched, ids, gradients, learning_rate, self._optimizer
            )

        def of_all_copies(strategy, *tensors):
            strategy.extended.update(
                shard.rows, of_copy, args=(shard.state, shard.touched, *tensors), group=False
            )

        context = tf.distribute.get_replica_context()
        context.merge_call(of_all_copies, args=(ids, gradients))

    def _over_replicas(self, ids: tf.Tensor, gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        context = tf.distribute.get_replica_context()
        if context.num_replicas_in_sync == 1:
            return ids, gradients
        if not self._own_ids:
            return ids, context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        # A function's argument is on no device, but a collective's input must be on one.
        everyone = context.all_gather(tf.identity(ids), axis=0)
        gathered = context.all_gather(gradients, axis=0)
        distinct, position = tf.unique(everyone)
        return distinct, tf.math.unsorted_segment_sum(gathered, position, tf.size(distinct))

    def _trained(self, rows: tf.Variable) -> Shard:
        count, dim = rows.shape
        shape = adagrad.state_shape(self._optimizer, count, dim)

        def constant(shape, dtype, value):
            # A callable is evaluated where the variable lives; a tensor would be built here and
            # shipped to the parameter server.
            initial = lambda: tf.fill(shape, tf.constant(value, dtype))  # noqa: E731
            return tf.Variable(initial, trainable=False)

        with tf.distribute.get_strategy().extended.colocate_vars_with(rows):
            state = constant(shape, tf.float32, adagrad.INITIAL_STATE)
            touched = constant([count], self._flag_dtype, shard_ops.CLEAN)
        return Shard(rows, state, touched)

    def save(self, folder: str) -> dict[str, Any]:
        """Writes the rows touched since the last complete save to `folder`/tables/….

        Returns:
          {table: {num_rows, dim, shards, chunks: prefixes relative to `folder`}}.
        """
        frozen = self._frozen_rows.items()
        saved = {name: self._description(name, len(shards), []) for name, shards in frozen}
        for name, shards in self._shards.items():
            chunks: list[str] = []
            for index, shard in enumerate(shards):
                first = _copies(shard)[0]
                below = f"tables/{name}/{index}-of-{len(shards)}"
                os.makedirs(os.path.join(folder, below), exist_ok=True)
                for copy in _copies(shard):
                    shard_ops.begin_save(copy.touched)
                chunks += _save_shard(first, folder, below, index, len(shards))
            saved[name] = self._description(name, len(shards), chunks)
        return saved

    def _description(self, name: str, shards: int, chunks: list[str]) -> dict[str, Any]:
        num_rows, dim = self._dims[name]
        return {"num_rows": num_rows, "dim": dim, "shards": shards, "chunks": chunks}

    def end_save(self, ok: bool) -> None:
        """The checkpoint is complete, or its rows stay touched."""
        for shards in self._shards.values():
            for shard in shards:
                for copy in _copies(shard):
                    shard_ops.end_save(copy.touched, ok)

    def restore(self, chunks: Mapping[str, list[str]]) -> None:
        """Applies chunks, oldest first, to freshly made tables.

        Args:
          chunks: absolute prefixes by table.
        """
        for name, shards in self._shards.items():
            for prefix in chunks.get(name, ()):
                for index, shard in enumerate(shards):
                    for copy in _copies(shard):
                        shard_ops.restore_chunk(
                            copy.rows, copy.state, tf.constant(prefix), index, len(shards)
                        )
        copies = tf.distribute.get_strategy().experimental_local_results
        for name, frozen in self._frozen_rows.items():
            for prefix in chunks.get(name, ()):
                for index, rows in enumerate(frozen):
                    for copy in copies(rows):
                        shard_ops.restore_chunk(copy, None, tf.constant(prefix), index, len(frozen))


def _reader(table: EmbeddingTable) -> Callable[[tf.Tensor], tf.Tensor]:
    """int64 [U] -> float32 [U, dim]. Not `lookup`: tf.gather reads a mirrored variable whole."""
    if len(table.shards) == 1:
        return functools.partial(shard_ops.gather, table.shards[0])
    return table.lookup


def _slots(table: DynamicTable, keys: tf.Tensor, step: tf.Tensor | None) -> tf.Tensor:
    if step is None:
        return table.resolve(keys, tf.constant(0, tf.int64), training=False)
    table.evict_in_time(step)
    return table.resolve(keys, step)


def _copies(shard: Shard) -> list[Shard]:
    """A shard's variables on each device of this process (one, unless mirrored)."""
    results = tf.distribute.get_strategy().experimental_local_results
    return [Shard(*copy) for copy in zip(*(results(v) for v in shard), strict=True)]


def _save_shard(shard: Shard, folder: str, below: str, index: int, count: int) -> list[str]:
    chunks = []
    for number, low in enumerate(range(0, shard.rows.shape[0], _SAVE_CHUNK)):
        high = min(low + _SAVE_CHUNK, shard.rows.shape[0])
        prefix = f"{below}/{number}"
        written = shard_ops.save_chunk(
            *shard,
            tf.constant(low, tf.int64),
            tf.constant(high, tf.int64),
            tf.constant(os.path.join(folder, prefix)),
            index,
            count,
        )
        if int(written):
            chunks.append(prefix)
    return chunks
