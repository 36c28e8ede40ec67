"""`parameter_server`: every variable on parameter servers, workers train asynchronously.

The stock ParameterServerStrategy with a coordinator. One scheduled call trains several steps, and
names the batches it trains on, so that a call that is tried again on another worker trains on the
same ones, and no batch is trained by two workers.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from data.spec import Phase
from modules.embeddings.local_tables import LocalTables
from modules.embeddings.sharding import sharded_by
from modules.features import Batch
from modules.training.input.localize import localize
from modules.training.placements.placement import Batches, Progress
from modules.training.placements.synchronous import Packing, row_ids, to_numpy, with_rows
from modules.training.step import Step

_CALLS_AHEAD = 8
"""Calls a worker that are scheduled before the first is done: the others go on while one hangs."""


class ParameterServer:
    """Args:
    strategy: of the cluster that this process coordinates.
    features: large tables -> the features that read them (`large_tables`).
    steps_per_call: steps that one scheduled call trains.
    min_shard_bytes: large tables are cut into as many shards of at least that size as there
      are parameter servers at most.
    """

    tables: LocalTables
    longest_run = sys.maxsize

    def __init__(
        self,
        strategy: tf.distribute.ParameterServerStrategy,
        features: Mapping[str, tuple[str, ...]],
        *,
        workers: int,
        servers: int,
        steps_per_call: int,
        min_shard_bytes: int,
    ):
        self._workers = workers
        self._features = features
        self._steps_per_call = steps_per_call
        self._partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
            min_shard_bytes, max_shards=servers
        )
        # The partitioner decides on the number of shards, but isn't the strategy's: its shards are
        # ranges of rows, of which the first would have all the frequent ones.
        self._strategy = strategy
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._strategy)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        def shards(rows: int, dim: int) -> int:
            return int(self._partitioner(tf.TensorShape([rows, dim]), tf.float32, axis=0)[0])

        with self._strategy.scope(), sharded_by(shards):
            yield

    def start(self, step: Step, phase: Phase, batches: Batches) -> None:
        with self.scope():
            self.tables = LocalTables(step.large, phase.table_optimizer)
        tables, rate = self.tables, phase.table_learning_rate

        def one_step(batch: Batch, number: tf.Tensor) -> tf.Tensor:
            ids = row_ids(batch, tables.names)
            values, gradients = step(batch | with_rows(ids, tables), number)
            tables.update(ids, gradients, rate)
            self._pack = Packing(values)
            return self._pack.pack(values)

        scalar = tf.TensorSpec([], tf.int64)

        # One graph for any number of steps: a step unrolled eight times takes eight times as long
        # to trace, to cut between processes and to optimize.
        @tf.function(autograph=False, input_signature=[scalar] * 4)
        def call(
            epoch: tf.Tensor, start: tf.Tensor, stop: tf.Tensor, first: tf.Tensor
        ) -> tf.Tensor:
            dataset = batches(epoch, start, stop).map(lambda b: localize(b, self._features))
            iterator = iter(dataset.prefetch(2))

            def another(number: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                values = self._strategy.run(one_step, args=(next(iterator), number))
                return number + 1, sums + values

            last = first + stop - start
            return tf.while_loop(
                lambda number, _: number < last,
                another,
                [first, tf.constant(0.0)],
                shape_invariants=[first.shape, tf.TensorShape(None)],
                parallel_iterations=1,
            )[1]

        self._call = call

    def steps(
        self, epoch: int, start: int, stop: int, first: int, stop_requested: Callable[[], bool]
    ) -> Iterator[Progress]:
        waiting: collections.deque[tuple[int, Any]] = collections.deque()

        def finish() -> Progress:
            count, result = waiting.popleft()
            return Progress(count, self._pack.unpack(result.fetch()))

        at = start
        while at < stop and not stop_requested():
            # Ends at multiples: what is read at a time isn't read by two calls.
            end = min(at - at % self._steps_per_call + self._steps_per_call, stop)
            waiting.append((end - at, self._schedule(epoch, at, end, first + at - start)))
            at = end
            if len(waiting) == _CALLS_AHEAD * self._workers:
                yield finish()
        while waiting:
            yield finish()
        self._coordinator.join()

    def sum_over_hosts(self, value: int) -> int:
        return value

    def close(self) -> None:
        """The servers are the cluster's to end."""

    def _schedule(self, *numbers: int) -> Any:
        scalars = tuple(tf.constant(number, tf.int64) for number in numbers)
        return self._coordinator.schedule(self._call, args=scalars)

    def predict(self, fn: Callable[[Batch], Any], batches: tf.data.Dataset) -> Iterator[Any]:
        batches = batches.map(lambda batch: localize(batch, self._features))

        @tf.function(autograph=False, input_signature=[batches.element_spec])
        def answer(batch: Batch) -> Any:
            return fn(batch | with_rows(row_ids(batch, self.tables.names), self.tables))

        for batch in batches:
            yield to_numpy(batch), to_numpy(answer(batch))
