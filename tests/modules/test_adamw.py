"""The fused AdamW against Keras' own."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import tensorflow as tf
import tf_keras as keras

from modules.training.adamw import AdamW
from modules.training.step import WarmupCosine

RATE, DECAY, STEPS = WarmupCosine(0.02, 40), 0.1, 40


def variables() -> list[tf.Variable]:
    """Of which the second doesn't decay, and the last never has a gradient."""
    return [
        tf.Variable(tf.reshape(tf.range(1.0, 7.0), [3, 2]), name="kernel"),
        tf.Variable([1.0, -1.0], name="bias"),
        tf.Variable(tf.ones([4, 2]), name="position"),
        tf.Variable(5.0, name="unused"),
    ]


def gradients(step: int) -> list:
    rng = np.random.default_rng(step)
    dense = [tf.constant(rng.normal(size=shape), tf.float32) for shape in ([3, 2], [2], [2, 2])]
    return [*dense[:2], tf.IndexedSlices(dense[2], [3, step % 3], [4, 2]), None]


def test_it_moves_variables_as_keras_does():
    ours, theirs = variables(), variables()
    optimizer = AdamW(ours, RATE, DECAY, decay=lambda variable: "bias" not in variable.name)
    keras_optimizer = keras.optimizers.AdamW(RATE, weight_decay=DECAY, jit_compile=False)
    keras_optimizer.exclude_from_weight_decay(var_names=["bias"])
    keras_optimizer.build(theirs)
    start = [variable.numpy() for variable in ours]
    for step in range(STEPS):
        optimizer.apply(gradients(step), ours, tf.constant(step, tf.int64))
        keras_optimizer.apply_gradients(zip(gradients(step)[:3], theirs[:3], strict=True))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=2e-5, atol=2e-6)
    moved = [not np.allclose(a, v.numpy()) for a, v in zip(start, ours, strict=True)]
    assert moved == [True, True, True, False]


def test_all_copies_of_a_variable_decay_or_none():
    """The copies' names differ from their variable's; two devices need a process of their own."""
    child = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def train_copies() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        ours = variables()
        optimizer = AdamW(ours, RATE, DECAY, decay=lambda v: v.name.endswith("kernel:0"))

    @tf.function(autograph=False)
    def step(number: tf.Tensor) -> None:
        strategy.run(lambda: optimizer.apply(gradients(0), ours, number))

    for number in range(3):
        step(tf.constant(number, tf.int64))
    for variable in ours:
        one, other = strategy.experimental_local_results(variable)
        np.testing.assert_array_equal(one.numpy(), other.numpy(), variable.name)


if __name__ == "__main__":
    train_copies()
