"""Cost of the MoE feed-forward layer against a dense one of the same active size.

    python -m benchmarks.layers.moe_ffn [--tokens 4096] [--hidden 128] [--ffn 512]

Forward + backward, all gradients; thousands of tokens a second of CPU time (what a core does),
the median of some steps. The ratio against the dense layer is the figure to trust.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402

from modules.layers.moe_ffn import MoEFeedForward  # noqa: E402

EXPERTS = (1, 4, 16, 64)


def tokens_per_core_second(layer: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> float:
    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(layer(x)))
        gradients = tape.gradient(loss, [x, *tape.watched_variables()])
        return tf.add_n([tf.reduce_sum(g) for g in gradients if g is not None])

    def cpu_seconds() -> float:
        start = time.process_time()
        step().numpy()
        return time.process_time() - start

    for _ in range(3):
        cpu_seconds()
    return x.shape[0] * x.shape[1] / statistics.median(cpu_seconds() for _ in range(11))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--ffn", type=int, default=512)
    args = parser.parse_args()

    x = tf.random.normal((32, args.tokens // 32, args.hidden))
    mask = tf.ones(x.shape[:2], tf.bool)
    dense = keras.Sequential(
        [
            keras.layers.Dense(args.ffn, activation="relu", use_bias=False),
            keras.layers.Dense(args.hidden, use_bias=False),
        ]
    )
    reference = tokens_per_core_second(dense, x)
    print(f"{args.tokens} tokens, D={args.hidden}, F={args.ffn}; forward + backward")
    print(f"{'layer':<28}{'k tokens/core-s':>16}{'vs dense':>10}")
    print(f"{'dense':<28}{reference / 1e3:>16.1f}{1:>10.2f}", flush=True)
    for capacity_factor, path in ((None, "dropless"), (1.25, "capacity 1.25")):
        for experts in EXPERTS:
            layer = MoEFeedForward(experts, args.hidden, args.ffn, capacity_factor)
            rate = tokens_per_core_second(lambda x, f=layer: f(x, mask, training=True)[0], x)
            name = f"{path}, E={experts}"
            print(f"{name:<28}{rate / 1e3:>16.1f}{rate / reference:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
