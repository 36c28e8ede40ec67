"""`hybrid`: large tables in a sparse tier of parameter servers, all else on the trainers' devices.

Dense weights and small tables train synchronously, as in `mirrored` (several trainers: as in
`multi_worker_mirrored`). Large tables train asynchronously: while one batch trains, the rows of
the next are fetched, and the gradients of the ones before are pushed, with a bound on how many
pushes a batch's rows may miss (PERSIA, Lian et al. 2021, trains the two parts the same way).
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from data.spec import Phase
from modules.embeddings.sharding import sharded_by
from modules.embeddings.table import EmbeddingTable, ids_key, rows_key
from modules.embeddings.tier.client import SparseTier
from modules.embeddings.tier.connection import Chunks, ShardStatistics
from modules.embeddings.tier.layout import FloatType, TierTable
from modules.features import Batch
from modules.training.input.localize import localize, replica_share
from modules.training.placements.placement import Batches, Progress
from modules.training.placements.shared_tier import SharedTier
from modules.training.placements.synchronous import (
    RUN_OF_HOSTS,
    Packing,
    of_host,
    sum_over_hosts,
    to_numpy,
)
from modules.training.step import Step

_Future = concurrent.futures.Future
_Threads = concurrent.futures.ThreadPoolExecutor


@dataclasses.dataclass(frozen=True)
class TierSettings:
    """Where the tier is, and how it is used; see `cluster.config.Cluster`."""

    addresses: tuple[str, ...]
    staleness: int
    fetchers: int
    wire_dtype: FloatType
    rest_dtype: FloatType


class Hybrid:
    """Args:
    strategy: of this trainer's devices, or of all trainers'.
    features: large tables -> the features that read them (`large_tables`); at least one.
    newest_chunks: the tables' chunks in this run's newest checkpoint, None without one; asked
      when a server has come back empty.
    report: told what happens to the tier's shards, and at the end what went over the network.
    host, hosts: this trainer's number among all of them; 0 is the chief.
    report_every: steps between two reports of progress.
    """

    tables: SharedTier

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        features: Mapping[str, tuple[str, ...]],
        settings: TierSettings,
        newest_chunks: Callable[[], Chunks | None],
        report: Callable[..., None],
        host: int = 0,
        hosts: int = 1,
        report_every: int = 20,
    ):
        self._strategy = strategy
        self._features = features
        self._settings = settings
        self._newest_chunks = newest_chunks
        self._report = report
        self._host, self._hosts = host, hosts
        self._replicas = strategy.num_replicas_in_sync // hosts
        self._report_every = report_every
        self._pushes = itertools.count()
        self._waited = 0.0
        self._at_close = contextlib.ExitStack()
        self.longest_run = sys.maxsize if hosts == 1 else RUN_OF_HOSTS

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with self._strategy.scope(), sharded_by(lambda rows, dim: 0):
            yield

    def start(self, step: Step, phase: Phase, batches: Batches) -> None:
        self._batches = batches
        self.tables = self._tier_of(step.large, phase)
        self._at_close.callback(self._end_tier)
        wire = tf.as_dtype(self._settings.wire_dtype)
        row_specs = self._row_specs = {
            rows_key(name): tf.TensorSpec([None, table.dim], tf.float32)
            for name, table in step.large.items()
        }

        def one_replica(batch: Batch, number: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            values, gradients = step(self._share_of_replica(batch), number)
            self._pack = Packing(values)
            return self._pack.pack(values), gradients

        def one_step(batch: Batch, number: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            values, gradients = self._strategy.run(one_replica, args=(batch, number))
            values = self._strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
            return values, {name: tf.cast(self._summed(g), wire) for name, g in gradients.items()}

        spec = self._of_host(0, 0, 1).element_spec | row_specs
        number = tf.TensorSpec([], tf.int64)
        # No Python branch depends on data; converting it all anyway would triple the tracing time.
        self._step = tf.function(one_step, autograph=False, input_signature=[spec, number])

    def steps(
        self, epoch: int, start: int, stop: int, first: int, stop_requested: Callable[[], bool]
    ) -> Iterator[Progress]:
        batches = iter(self._of_host(epoch, start, stop))
        ahead: collections.deque[_Future] = collections.deque()
        pushed: _Future | None = None
        done, sums = 0, None
        with _Threads(1) as pushing, _given_up(_Threads(self._settings.fetchers)) as fetching:

            def fetch_next(after: _Future | None) -> None:
                batch = next(batches, None)
                if batch is not None:
                    ahead.append(fetching.submit(self._fetch, batch, after))

            for _ in range(self._settings.staleness + 1):
                fetch_next(None)
            for number in itertools.count(first):
                # Several hosts agree on a stop at the end of a run.
                if not ahead or (self._hosts == 1 and stop_requested()):
                    break
                began = time.monotonic()
                batch = ahead.popleft().result()
                self._waited += time.monotonic() - began
                values, gradients = self._step(batch, tf.constant(number, tf.int64))
                pushed = pushing.submit(self._push, batch, gradients, pushed)
                fetch_next(pushed)
                sums = values if sums is None else sums + values
                done += 1
                if done == self._report_every:
                    yield Progress(done, self._pack.unpack(sums))
                    done, sums = 0, None
            if pushed is not None:
                pushed.result()
        if done:
            yield Progress(done, self._pack.unpack(sums))

    def sum_over_hosts(self, value: int) -> int:
        return sum_over_hosts(self._strategy, self._hosts, value)

    def predict(self, fn: Callable[[Batch], Any], batches: tf.data.Dataset) -> Iterator[Any]:
        batches = batches.map(lambda batch: localize(batch, self._features))
        spec = batches.element_spec | self._row_specs
        answer = tf.function(fn, autograph=False, input_signature=[spec])
        for batch in batches:
            yield to_numpy(batch), to_numpy(answer(batch | self._rows_of(batch)))

    def close(self) -> None:
        self._at_close.close()

    def _end_tier(self) -> None:
        servers = self.tables.close()
        totals = {
            field.name: sum(getattr(server, field.name) for server in servers)
            for field in dataclasses.fields(ShardStatistics)
            if field.name != "address"
        }
        self._report("tier", trained_waiting_seconds=round(self._waited, 3), **totals)

    def _of_host(self, epoch: int, start: int, stop: int) -> tf.data.Dataset:
        batches = self._batches(epoch, start, stop)
        return of_host(batches, self._features, self._host, self._hosts).prefetch(2)

    def _share_of_replica(self, batch: Batch) -> Batch:
        if self._replicas == 1:
            return batch
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        with tf.device("CPU:0"):  # only its share is copied to a device
            return replica_share(batch, number - self._host * self._replicas, self._replicas)

    def _summed(self, gradient: Any) -> tf.Tensor:
        """Over this host's replicas: they share the distinct rows."""
        return tf.add_n(self._strategy.experimental_local_results(gradient))

    def _fetch(self, batch: Batch, after: _Future | None) -> Batch:
        """The batch with its rows, pulled once a push is done."""
        if after is not None:
            after.result()
        return batch | self._rows_of(batch)

    def _rows_of(self, batch: Batch) -> Batch:
        rows = self.tables.pull(_ids_of(batch, self._features))
        return {rows_key(name): tf.constant(of_table) for name, of_table in rows.items()}

    def _push(
        self, batch: Batch, gradients: Mapping[str, tf.Tensor], before: _Future | None
    ) -> None:
        if before is not None:
            before.result()  # after a push that failed, none is applied
        arrays = {name: gradient.numpy() for name, gradient in gradients.items()}
        self.tables.push(_ids_of(batch, arrays), arrays, sequence=next(self._pushes))

    def _tier_of(self, large: Mapping[str, EmbeddingTable], phase: Phase) -> SharedTier:
        (seed,) = {table.seed for table in large.values()}
        tables = {
            name: TierTable(table.num_rows, table.dim, table.init_scale)
            for name, table in large.items()
        }
        # A server applies a trainer's numbered pushes once: a new process is a new trainer.
        trainer = f"{self._host}-{uuid.uuid4().hex}"

        def connect(recover: Callable[[int], Chunks | None]) -> SparseTier:
            return SparseTier(
                self._settings.addresses,
                tables,
                optimizer=phase.table_optimizer,
                learning_rate=phase.table_learning_rate,
                seed=seed,
                trainer=trainer,
                recover=recover,
                wire_dtype=self._settings.wire_dtype,
                rest_dtype=self._settings.rest_dtype,
                on_event=self._report,
            )

        return SharedTier(
            connect, self._newest_chunks, self._host == 0, lambda: self.sum_over_hosts(0)
        )


def _ids_of(batch: Batch, names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: batch[ids_key(name)].numpy() for name in names}


@contextlib.contextmanager
def _given_up(threads: _Threads) -> Iterator[_Threads]:
    """At the end the threads finish what they are at, and don't begin what waits."""
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
