"""Step time of the table optimizer against the table's rows: it should stay flat.

    python -m benchmarks.layers.rowwise_adagrad [--max_rows 10000000]

One step is a lookup of 32,768 ids in a table of width 16, its gradient and the update; the
least CPU time of 20 steps, as wall time depends on who else runs. The last line is the largest
table's time over the smallest's: 1.3 to 1.7 for 100 times the rows, where Adam's grows 12-fold
from 10^6 to 10^7 (DESIGN §6).
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402

from modules.embeddings.rowwise_adagrad import RowwiseAdagrad  # noqa: E402
from modules.embeddings.table import EmbeddingTable  # noqa: E402

LOOKUPS, DIM = 32_768, 16


def step_seconds(rows: int) -> float:
    table, optimizer = EmbeddingTable(rows, DIM, "table"), RowwiseAdagrad(0.05)
    optimizer.build([table.rows])

    @tf.function(input_signature=[tf.TensorSpec([LOOKUPS], tf.int64)])
    def step(ids: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(table(ids)))
        optimizer.apply_gradients([(tape.gradient(loss, table.rows), table.rows)])

    times = []
    for i in range(23):
        ids = tf.random.stateless_uniform([LOOKUPS], [0, i], 3, rows, tf.int64)
        start = time.process_time()
        step(ids)
        times.append(time.process_time() - start)
    return min(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max_rows", type=int, default=10_000_000)
    args = parser.parse_args()
    rows, seconds = 100_000, []
    while rows <= args.max_rows:
        seconds.append(step_seconds(rows))
        print(f"{rows:>12,} rows {seconds[-1] * 1e3:>8.1f} ms a step", flush=True)
        rows *= 10
    print(f"largest / smallest {seconds[-1] / seconds[0]:.2f}")


if __name__ == "__main__":
    main()
