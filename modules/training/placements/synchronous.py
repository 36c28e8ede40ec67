"""`single`, `mirrored` and `multi_worker_mirrored`: every replica trains a part of each batch.

Replica r of R takes the instances r, r + R, … of the batch; losses and gradients are shares of the
whole batch's, so all three train like one process does. Large tables are variables too, mirrored
with the rest: for tables that don't fit a device take `hybrid`.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data.spec import Phase
from modules.embeddings.local_tables import LocalTables
from modules.embeddings.table import ids_key, rows_key
from modules.features import Batch
from modules.replicas import sum_over_replicas
from modules.training.input.localize import host_share, localize, replica_share
from modules.training.placements.placement import Batches, Progress
from modules.training.step import Scalars, Step

RUN_OF_HOSTS = 48
"""Steps between two times that several hosts agree on whether to stop."""


class Synchronous:
    """Args:
    strategy: the default one (`single`), MirroredStrategy or MultiWorkerMirroredStrategy.
    features: large tables -> the features that read them (`large_tables`).
    host, hosts: this trainer's number among all of them.
    report_every: steps between two reports of progress.
    """

    tables: LocalTables

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        features: Mapping[str, tuple[str, ...]],
        host: int = 0,
        hosts: int = 1,
        report_every: int = 20,
    ):
        self._strategy = strategy
        self._features = features
        self._host, self._hosts = host, hosts
        self._replicas = strategy.num_replicas_in_sync // hosts
        self._report_every = report_every
        self.longest_run = sys.maxsize if hosts == 1 else RUN_OF_HOSTS

    def scope(self) -> contextlib.AbstractContextManager:
        return self._strategy.scope()

    def start(self, step: Step, phase: Phase, batches: Batches) -> None:
        with self.scope():
            self.tables = LocalTables(step.large, phase.table_optimizer, own_ids=self._hosts > 1)
        self._batches = batches
        tables, rate = self.tables, phase.table_learning_rate

        def one_replica(batch: Batch, number: tf.Tensor) -> tf.Tensor:
            ids = tables.resolve(row_ids(batch, tables.names), number)
            values, gradients = step(batch | with_rows(ids, tables), number)
            tables.update(ids, gradients, rate)
            self._pack = Packing(values)
            return sum_over_replicas(self._pack.pack(values))

        def one_step(batch: Batch, number: tf.Tensor) -> tf.Tensor:
            everywhere_equal = self._strategy.run(one_replica, args=(batch, number))
            return self._strategy.experimental_local_results(everywhere_equal)[0]

        spec = self._distributed(0, 0, 1).element_spec
        number = tf.TensorSpec([], tf.int64)
        # No Python branch depends on data; converting it all anyway would triple the tracing time.
        self._step = tf.function(one_step, autograph=False, input_signature=[spec, number])

    def steps(
        self, epoch: int, start: int, stop: int, first: int, stop_requested: Callable[[], bool]
    ) -> Iterator[Progress]:
        done, sums = 0, None
        for number, batch in enumerate(self._distributed(epoch, start, stop), start=first):
            if self._hosts == 1 and stop_requested():  # several hosts agree at the end of a run
                break
            values = self._step(batch, tf.constant(number, tf.int64))
            sums = values if sums is None else sums + values
            done += 1
            if done == self._report_every:
                yield Progress(done, self._pack.unpack(sums))
                done, sums = 0, None
        if done:
            yield Progress(done, self._pack.unpack(sums))

    def sum_over_hosts(self, value: int) -> int:
        return sum_over_hosts(self._strategy, self._hosts, value)

    def predict(self, fn: Callable[[Batch], Any], batches: tf.data.Dataset) -> Iterator[Any]:
        batches = batches.map(lambda batch: localize(batch, self._features))

        @tf.function(autograph=False, input_signature=[batches.element_spec])
        def answer(batch: Batch) -> Any:
            ids = self.tables.resolve(row_ids(batch, self.tables.names))
            return fn(batch | with_rows(ids, self.tables))

        for batch in batches:
            yield to_numpy(batch), to_numpy(answer(batch))

    def close(self) -> None:
        """Nothing outlives `steps`."""

    def _distributed(self, epoch: int, start: int, stop: int) -> tf.distribute.DistributedDataset:
        def of_replicas(_: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = self._batches(epoch, start, stop)
            batches = of_host(batches, self._features, self._host, self._hosts)
            if self._replicas > 1:
                batches = batches.flat_map(self._to_replicas)
            return batches.prefetch(2 * self._replicas)

        return self._strategy.distribute_datasets_from_function(of_replicas)

    def _to_replicas(self, batch: Batch) -> tf.data.Dataset:
        replicas = tf.data.Dataset.range(self._replicas)
        return replicas.map(lambda r: replica_share(batch, r, self._replicas))


class Packing:
    """All recorded values of a step as one vector: one sum over replicas, one fetch."""

    def __init__(self, values: Scalars):
        self._shapes = {name: tuple(value.shape) for name, value in values.items()}

    def pack(self, values: Scalars) -> tf.Tensor:
        return tf.concat([tf.reshape(values[name], [-1]) for name in self._shapes], axis=0)

    def unpack(self, vector: tf.Tensor | np.ndarray) -> dict[str, Any]:
        flat, start, values = np.asarray(vector), 0, {}
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            values[name] = flat[start : start + size].reshape(shape)
            start += size
        return values


def of_host(
    batches: tf.data.Dataset, features: Mapping[str, tuple[str, ...]], host: int, hosts: int
) -> tf.data.Dataset:
    """A host's share of each batch, localized."""
    if hosts > 1:
        batches = batches.map(lambda batch: host_share(batch, host, hosts))
    return batches.map(lambda batch: localize(batch, features))


def sum_over_hosts(strategy: tf.distribute.Strategy, hosts: int, value: int) -> int:
    """What all hosts give, summed; every one of them must ask."""
    if hosts == 1:
        return value
    own = tf.constant(value, tf.int64)
    everyone = strategy.run(lambda: own)
    total = strategy.reduce(tf.distribute.ReduceOp.SUM, everyone, axis=None)
    return int(total) * hosts // strategy.num_replicas_in_sync


def row_ids(batch: Batch, names: Iterable[str]) -> dict[str, tf.Tensor]:
    """A localized batch's distinct rows, int64 [U] by table."""
    return {name: batch[ids_key(name)] for name in names}


def with_rows(ids: Mapping[str, tf.Tensor], tables: LocalTables) -> Batch:
    """Rows as `tables.resolve` names them, gathered from variables, under the batch's keys."""
    return {rows_key(name): rows for name, rows in tables.gather(ids).items()}


def to_numpy(values: Any) -> Any:
    """A structure of tensors as NumPy."""
    return tf.nest.map_structure(lambda tensor: tensor.numpy(), values)
