"""Steps of the real training code on one made-up batch, without data or a pipeline."""

from __future__ import annotations

import tensorflow as tf

from data.spec import parse_spec
from modules.training.cluster.config import ClusterTask
from modules.training.input.localize import large_tables
from modules.training.placements.create import create, strategy_of, use_devices
from modules.training.planning.batch import synthetic_batch, with_empty_rows
from modules.training.planning.phase import build, phase_of
from modules.training.planning.probe import Request
from modules.training.step import Step


class Trainer:
    """Args:
    request: what to train; its cluster is `single`, `mirrored` or `parameter_server`.
    task: this process's in the cluster; None: it is alone.
    """

    def __init__(self, request: Request, task: ClusterTask | None):
        spec, rows = parse_spec(request.spec), request.rows
        cluster = request.cluster if task is None else request.cluster.at(dict(task.addresses))
        use_devices(cluster)
        strategy, features = strategy_of(cluster, task), large_tables(spec, rows)
        self._placement = create(
            cluster,
            task,
            strategy,
            features,
            newest_chunks=lambda: None,
            report=lambda event, **fields: None,
        )
        batch = synthetic_batch(spec, rows, request.size)
        phase = phase_of(spec, request.phase)
        two = with_empty_rows({name: value[:2] for name, value in batch.items()}, spec, rows)
        with self._placement.scope():
            module, loss = build(spec, request.phase, rows, two)
            step = Step(module, loss, phase, request.steps)

        def batches(_: tf.Tensor, start: tf.Tensor, stop: tf.Tensor) -> tf.data.Dataset:
            numbers = tf.data.Dataset.range(stop - start)
            return numbers.map(lambda _: batch)

        self._placement.start(step, phase, batches)
        self._done = 0

    def train(self, steps: int) -> None:
        """Trains that many."""
        start, stop = self._done, self._done + steps
        for progress in self._placement.steps(0, start, stop, start, lambda: False):
            self._done += progress.steps
