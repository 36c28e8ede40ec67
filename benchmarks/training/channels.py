"""What channels cost: a training step's time, memory and graph for 12, 103 and 786 of them.

    python -m benchmarks.training.channels --channels=12,103,786

The simulator's spec with so many sequence channels (SuperMoE Table 3), on made-up batches of 8
instances with 64 events and 8 targets. Each configuration has a process of its own; the processes
run one after another.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import json  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

import psutil  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import app, flags  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.simulator.channels import CORE_CHANNELS, simulator_spec  # noqa: E402
from data.spec import Spec, parse_spec  # noqa: E402
from modules.training.planning.batch import synthetic_batch  # noqa: E402
from modules.training.planning.phase import build, phase_of  # noqa: E402
from modules.training.planning.rows import rows_of  # noqa: E402
from modules.training.planning.size import BatchSize  # noqa: E402
from modules.training.step import Step  # noqa: E402

_CHANNELS = flags.DEFINE_list("channels", ["12", "103", "786"], "Sequence channels.")
_PHASES = flags.DEFINE_list("phases", ["pretrain", "finetune"], "Of training.")
_STEPS = flags.DEFINE_integer("steps", 10, "Timed steps.", lower_bound=1)
_ONE = flags.DEFINE_string("one", None, "phase,channels: measures just this, here; prints JSON.")
_SIZE = BatchSize(instances=8, events=64, targets=8)
_WARM_UP = 2
_SPARE = ("event", "device", "coupon")
"""Channels of the default spec that 12 do without."""


def spec_of(channels: int) -> Spec:
    """The simulator's spec with so many sequence channels; masked ones are predicted, H is
    their maximum, λ stay."""
    raw = simulator_spec(max(channels, CORE_CHANNELS))
    raw["model"]["pooling"] = "max"
    raw["training"]["pretrain"]["objective"] = "masked_channels"
    raw["training"]["finetune"]["weighting"] = "static"
    dropped = _SPARE[: max(0, CORE_CHANNELS - channels)]
    raw["channels"] = [
        c for c in raw["channels"] if c["scope"] != "sequence" or c["name"] not in dropped
    ]
    spec = parse_spec(raw)
    if len(spec.scope("sequence")) != channels:
        raise ValueError(f"--channels={channels}: at least {CORE_CHANNELS - len(_SPARE)}")
    return spec


def measure(phase: str, channels: int) -> dict[str, Any]:
    """Trains in this process."""
    spec = spec_of(channels)
    rows = {table: known.rows for table, known in rows_of(spec, {}).items()}
    batch = synthetic_batch(spec, rows, _SIZE)
    before = psutil.Process().memory_info().rss
    started = time.monotonic()
    module, loss = build(spec, phase, rows, {k: v[:2] for k, v in batch.items()})
    step = Step(module, loss, phase_of(spec, phase), _WARM_UP + _STEPS.value)
    built = time.monotonic()

    @tf.function(autograph=False)
    def train(batch, number):
        return step(batch, number)[0]["loss"]

    number = tf.constant(0, tf.int64)
    graph = train.get_concrete_function(batch, number).graph.as_graph_def()
    traced = time.monotonic()
    for _ in range(_WARM_UP):
        float(train(batch, number))
    wall, cpu = [], time.process_time()
    for _ in range(_STEPS.value):
        since = time.monotonic()
        float(train(batch, number))
        wall.append(time.monotonic() - since)
    return {
        "build_seconds": built - started,
        "trace_seconds": traced - built,
        "operations": len(graph.node) + sum(len(f.node_def) for f in graph.library.function),
        "variables": len(module.trainable_variables),
        "step_ms": 1000 * statistics.median(wall),
        "step_cpu_ms": 1000 * (time.process_time() - cpu) / _STEPS.value,
        "memory_mib": (psutil.Process().memory_info().rss - before) / 2**20,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def main(argv: list[str]) -> None:
    del argv
    if _ONE.value:
        phase, channels = _ONE.value.split(",")
        print(json.dumps(measure(phase, int(channels))))
        return
    table = Table("phase", "channels", box=None)
    for phase in _PHASES.value:
        for channels in _CHANNELS.value:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training.channels"]
            command += [f"--one={phase},{channels}", f"--steps={_STEPS.value}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            if len(table.columns) == 2:
                for name in found:
                    table.add_column(name.replace("_", " "), justify="right")
            table.add_row(
                phase, channels, *(f"{value:,.1f}".removesuffix(".0") for value in found.values())
            )
    Console(width=150).print(table)


if __name__ == "__main__":
    app.run(main)
