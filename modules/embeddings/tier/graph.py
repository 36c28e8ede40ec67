"""What runs in one parameter server, for all tables at once: a TF1 graph and its calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from modules.embeddings import adagrad, shard
from modules.embeddings.initialization import table_seed
from modules.embeddings.tier.layout import FloatType, Layout

v1 = tf.compat.v1
CONTAINER = "sparse_tier"
"""Of the servers' resources that are the tier's, whichever trainer's graph made them."""
_NEVER = -1


@dataclasses.dataclass(frozen=True)
class Call:
    """Something to run: what to fetch, the placeholders to feed in order, and known values."""

    fetches: list[tf.Tensor] | tf.Tensor | tf.Operation
    feeds: list[tf.Tensor] = dataclasses.field(default_factory=list)
    known: dict[tf.Tensor, int] = dataclasses.field(default_factory=dict)

    def fed(self, *values: Any) -> dict[tf.Tensor, Any]:
        """A session's feed_dict."""
        return {**dict(zip(self.feeds, values, strict=True)), **self.known}


class _Table(NamedTuple):
    name: str
    rows: tf.Variable
    state: tf.Variable
    touched: tf.Variable

    @property
    def parts(self) -> tuple[tf.Variable, tf.Variable, tf.Variable]:
        return self.rows, self.state, self.touched


@dataclasses.dataclass(frozen=True)
class ShardGraph:
    """A shard's graph. Tables are in the layout's order everywhere.

    A lock in the server orders what writes: two trainers' pushes, a load, the flags of a save. It
    is held within one call, never between two.

    Attributes:
      holds: () -> whether the tables are there.
      hello: () -> (layout, incarnation) strings. Makes this trainer known. Needs tables.
      load: (anew, incarnation, *(chunk prefixes [n] of each table)): initialises and restores all
        tables; unless `anew`, only if they aren't there. Others wait meanwhile, but for pulls,
        which see old, initial or new rows.
      pull: (*ids) -> rows in the wire's dtype, for each table.
      push: (sequence, *ids, *gradients): one optimizer step, unless this trainer's sequence
        number was seen before.
      begin_save: (); end_save: (ok).
      save_chunk: by table, (low, high, prefix) -> number of rows written.
    """

    graph: tf.Graph
    holds: Call
    hello: Call
    load: Call
    pull: Call
    push: Call
    begin_save: Call
    end_save: Call
    save_chunk: dict[str, Call]


def ids_dtype(num_rows: int, num_shards: int) -> type[np.integer]:
    """Of row numbers within a shard: the narrower of two where it suffices."""
    fits = shard.shard_rows(num_rows, 0, num_shards) <= np.iinfo(np.int32).max
    return np.int32 if fits else np.int64


def build(
    layout: Layout,
    number: int,
    *,
    learning_rate: float,
    wire_dtype: FloatType,
    trainer: str,
) -> ShardGraph:
    """The graph of shard `number` for one trainer."""
    graph = tf.Graph()
    with graph.as_default(), graph.container(CONTAINER), tf.device("/device:CPU:0"):
        builder = _Builder(layout, number, learning_rate, tf.as_dtype(wire_dtype), trainer)
        calls = ShardGraph(
            graph=graph,
            holds=builder.holds(),
            hello=builder.hello(),
            load=builder.load(),
            pull=builder.pull(),
            push=builder.push(),
            begin_save=builder.begin_save(),
            end_save=builder.end_save(),
            save_chunk=dict(builder.save_chunks()),
        )
    graph.finalize()
    return calls


class _Builder:
    """Emits the calls into the default graph."""

    def __init__(
        self, layout: Layout, number: int, learning_rate: float, wire: tf.DType, trainer: str
    ):
        self._layout, self._number = layout, number
        self._learning_rate, self._wire = learning_rate, wire
        self._lock = tf.CriticalSection(shared_name="lock")
        self._held = _variable("layout", [], tf.string)
        self._incarnation = _variable("incarnation", [], tf.string)
        self._sequence = _variable(f"sequence/{trainer}", [], tf.int64)
        self._tables = [self._table(name) for name in layout.tables]

    def _table(self, name: str) -> _Table:
        table = self._layout.tables[name]
        count = shard.shard_rows(table.num_rows, self._number, self._layout.num_shards)
        state_shape = adagrad.state_shape(self._layout.optimizer, count, table.dim)
        rest = tf.as_dtype(self._layout.rest_dtype)
        return _Table(
            name,
            _variable(f"rows/{name}", [count, table.dim], rest),
            _variable(f"state/{name}", state_shape, tf.float32),
            _variable(f"touched/{name}", [count], tf.uint8),
        )

    def holds(self) -> Call:
        return Call(self._is_there())

    def hello(self) -> Call:
        def introduce() -> tuple[tf.Tensor, tf.Tensor]:
            known = tf.raw_ops.VarIsInitializedOp(resource=self._sequence.handle)
            numbered = tf.cond(known, _nothing, lambda: _after(self._forget()))
            with tf.control_dependencies([numbered]):
                return self._held.read_value(), self._incarnation.read_value()

        return Call(list(self._lock.execute(introduce)))

    def load(self) -> Call:
        anew, incarnation = v1.placeholder(tf.bool, []), v1.placeholder(tf.string, [])
        chunks = [v1.placeholder(tf.string, [None]) for _ in self._tables]
        sizes = {v1.placeholder(tf.int32, []): t.rows.shape[0] for t in self._tables}

        def load(there: tf.Tensor) -> tf.Tensor:
            filled = [
                self._fill(table, prefixes, count, there)
                for table, prefixes, count in zip(self._tables, chunks, sizes, strict=True)
            ]
            with tf.control_dependencies(filled):
                layout = self._layout.of_shard(self._number)
                named = self._incarnation.assign(incarnation, read_value=False)
                with tf.control_dependencies([named, self._forget()]):
                    return _after(self._held.assign(layout, read_value=False))

        def unless_done() -> tf.Tensor:
            there = self._is_there()
            return tf.cond(there & ~anew, _nothing, lambda: load(there))

        return Call(self._lock.execute(unless_done).op, [anew, incarnation, *chunks], sizes)

    def pull(self) -> Call:
        ids = self._ids()
        rows = [shard.gather(t.rows, i) for t, i in zip(self._tables, ids, strict=True)]
        return Call([tf.cast(r, self._wire) for r in rows], ids)

    def push(self) -> Call:
        sequence, ids = v1.placeholder(tf.int64, []), self._ids()
        gradients = [v1.placeholder(self._wire, [None, t.rows.shape[1]]) for t in self._tables]

        def once() -> tf.Tensor:
            newest = self._sequence.read_value()
            fresh = sequence > newest
            updates = []
            for table, i, g in zip(self._tables, ids, gradients, strict=True):
                take = tf.where(fresh, tf.size(i), 0)  # nothing of what was applied before
                update = shard.update(
                    *table.parts, i[:take], g[:take], self._learning_rate, self._layout.optimizer
                )
                updates.append(update)
            with tf.control_dependencies(updates):
                return _after(self._sequence.assign(tf.maximum(sequence, newest), read_value=False))

        return Call(self._lock.execute(once).op, [sequence, *ids, *gradients])

    def begin_save(self) -> Call:
        return self._on_flags(shard.begin_save)

    def end_save(self) -> Call:
        ok = v1.placeholder(tf.bool, [])
        return self._on_flags(lambda touched: shard.end_save(touched, ok), ok)

    def save_chunks(self) -> Iterator[tuple[str, Call]]:
        for table in self._tables:
            low, high = v1.placeholder(tf.int64, []), v1.placeholder(tf.int64, [])
            prefix = v1.placeholder(tf.string, [])
            written = shard.save_chunk(
                *table.parts, low, high, prefix, self._number, self._layout.num_shards
            )
            yield table.name, Call(written, [low, high, prefix])

    def _fill(
        self, table: _Table, prefixes: tf.Tensor, count: tf.Tensor, there: tf.Tensor
    ) -> tf.Tensor:
        """Initial rows, then every chunk. Rows that are `there` keep their memory."""
        wanted = self._layout.tables[table.name]
        seed = table_seed(table.name, self._layout.seed)
        place = self._number, self._layout.num_shards
        allocated = tf.cond(there, _nothing, lambda: _after(shard.allocate(table.rows, count)))
        with tf.control_dependencies([allocated, shard.reset(table.state, table.touched, count)]):
            filled = shard.fill(table.rows, seed, wanted.init_scale, *place)

        def restore(i: tf.Tensor) -> tuple[tf.Tensor]:
            done = shard.restore_chunk(table.rows, table.state, prefixes[i], *place)
            with tf.control_dependencies([done]):
                return (i + 1,)

        with tf.control_dependencies([filled]):
            start = tf.constant(0)
        return tf.while_loop(
            lambda i: i < tf.size(prefixes), restore, [start], parallel_iterations=1
        )[0]

    def _on_flags(
        self, emit: Callable[[tf.Variable], tf.Operation | None], *feeds: tf.Tensor
    ) -> Call:
        def all_tables() -> tf.Tensor:
            return _after(*(emit(t.touched) for t in self._tables))

        return Call(self._lock.execute(all_tables).op, list(feeds))

    def _ids(self) -> list[tf.Tensor]:
        shards = self._layout.num_shards
        rows = [self._layout.tables[t.name].num_rows for t in self._tables]
        return [v1.placeholder(ids_dtype(n, shards), [None]) for n in rows]

    def _is_there(self) -> tf.Tensor:
        # The layout is a load's last assignment.
        return tf.raw_ops.VarIsInitializedOp(resource=self._held.handle)

    def _forget(self) -> tf.Operation:
        return self._sequence.assign(_NEVER, read_value=False)


def _variable(name: str, shape: list[int], dtype: tf.DType) -> tf.Variable:
    # The initializer is not run.
    return v1.get_variable(
        name, shape, dtype, v1.zeros_initializer(), trainable=False, use_resource=True
    )


def _after(*operations: tf.Operation | None) -> tf.Tensor:
    """A tensor that is there once the operations are done; a `cond` wants one of each branch."""
    with tf.control_dependencies(operations):
        return tf.constant(True)


def _nothing() -> tf.Tensor:
    return tf.constant(True)
