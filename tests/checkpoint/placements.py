"""A small program to be saved; as a program itself, saves and restores it across placements."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import portpicker
import tensorflow as tf
import tf_keras as keras

from modules.embeddings.rowwise_adagrad import RowwiseAdagrad
from modules.training.checkpoint import dense
from modules.training.step import WarmupCosine

Run = Callable[[Callable[[], None]], None]
"""Runs a step as its placement does."""


class Program(tf.Module):
    """What a placement trains: layers of every kind, two optimizers, counters, a generator."""

    def __init__(self, seed: int):
        super().__init__()
        keras.utils.set_random_seed(seed)
        self.model = keras.Sequential(
            [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
        )
        self.model.build([None, 4])
        self.table = tf.Variable(tf.random.normal([7, 2]))
        self.large = tf.Variable(tf.random.normal([9, 2]), name="large")
        self.adam = keras.optimizers.AdamW(WarmupCosine(0.1, 20), weight_decay=0.1)
        self.adam.build(self.model.trainable_variables)
        self.adagrad = RowwiseAdagrad(0.1)
        self.adagrad.build([self.table])
        self.steps = tf.Variable(0, dtype=tf.int64)
        self.generator = tf.random.Generator.from_seed(seed)

    @property
    def objects(self) -> dict[str, tf.Module]:
        return {"model": self.model, "program": self}

    @property
    def all_variables(self) -> list[tf.Variable]:
        """Module.variables doesn't look into optimizers and generators."""
        slots = [*self.adam.variables, *self.adagrad.variables]
        rates = [self.adam._current_learning_rate, self.adagrad._learning_rate]
        return [*self.variables, *slots, *rates, self.generator.state]

    def train(self, run: Run, num_steps: int) -> None:
        noise = tf.random.stateless_normal([8, 4], [1, 2])

        @tf.function(autograph=False)
        def step():
            with tf.GradientTape() as tape:
                rows = tf.gather(self.table, [1, 3])
                loss = tf.reduce_mean(self.model(noise, training=True) ** 2) + tf.norm(rows)
            weights = [self.table, *self.model.trainable_variables]
            of_table, *of_model = tape.gradient(loss, weights)
            self.adagrad.apply_gradients([(of_table, self.table)])
            self.adam.apply_gradients(zip(of_model, weights[1:], strict=True))

        for _ in range(num_steps):
            run(step)
        self.steps.assign_add(num_steps)
        self.generator.normal([3])

    def snapshot(self) -> dict[str, np.ndarray]:
        return dense.dense_snapshot(self.objects, without=[self.large])

    def restore(self, prefix: str) -> None:
        dense.restore(prefix, self.objects, without=[self.large])


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def run_here(step: Callable[[], None]) -> None:
    tf.distribute.get_strategy().run(step)


@dataclasses.dataclass(frozen=True)
class Placement:
    strategy: tf.distribute.Strategy
    run: Run


def single() -> Placement:
    return Placement(tf.distribute.get_strategy(), run_here)


def mirrored() -> Placement:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return Placement(strategy, strategy.run)


def parameter_server() -> Placement:
    """Two parameter servers and a worker, all in this process, over gRPC."""
    addresses = {
        job: [f"localhost:{portpicker.pick_unused_port()}" for _ in range(count)]
        for job, count in {"ps": 2, "worker": 1}.items()
    }
    cluster = tf.train.ClusterSpec(addresses)
    for job in addresses:
        for task in range(len(addresses[job])):
            tf.distribute.Server(cluster, job, task, protocol="grpc")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)

    def run(step: Callable[[], None]) -> None:
        coordinator.schedule(tf.function(lambda: strategy.run(step), autograph=False))
        coordinator.join()

    return Placement(strategy, run)


def check(before: Placement, after: Placement, folder: pathlib.Path) -> None:
    """Trains under one placement, restores under another."""
    with before.strategy.scope():
        saved = Program(seed=1)
    saved.train(before.run, 2)
    expected = saved.snapshot()
    assert expected["program/adam/_iterations"] == 2
    prefix = str(folder / dense.NAME)
    dense.write(prefix, expected)
    with after.strategy.scope():
        restored = Program(seed=2)
    large = restored.large.numpy()
    restored.restore(prefix)
    assert_equal(restored.snapshot(), expected)
    np.testing.assert_array_equal(restored.large.numpy(), large)
    for variable in restored.all_variables:  # every copy, not only the one that is read
        copies = [copy.numpy() for copy in after.strategy.experimental_local_results(variable)]
        assert len(copies) == after.strategy.num_replicas_in_sync
        assert all((copy == copies[0]).all() for copy in copies)


def main(folder: str, name: str) -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    other = {"mirrored": mirrored, "parameter_server": parameter_server}[name]()
    for number, (before, after) in enumerate([(single(), other), (other, single())]):
        check(before, after, pathlib.Path(folder, str(number)))


if __name__ == "__main__":
    main(*sys.argv[1:])
