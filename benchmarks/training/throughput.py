"""Every placement on the same batches, beside what a user of tf_keras would write instead.

    python -m benchmarks.training.throughput [--output=throughput.json]

All clusters are up at once, as real processes, and train in turns; ratios are of one round, and
the median of the rounds is shown. The problem is `problem.py`'s. Needs `ss` (iproute2).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.training.contestant import PLACED, Contestant, Turn, in_turns
from benchmarks.training.far import PROBLEM, far_contestants
from modules.training.cluster.config import parse_cluster

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each contestant.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 64, "Steps of a turn; asynchronous: 4 times.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Instances of 64 events.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_FIT = "fit"
_FIT_SHARED = "fit, cores shared"
"""Started by our launcher, which gives a worker its share of the cores; plain `fit`'s workers have
TensorFlow's default, all cores each."""
_ALL_CORES = {"TF_NUM_INTRAOP_THREADS": "0"}
_LONGER = 4
"""At the end of a turn one worker waits for the other, as at a checkpoint: no part of the rate."""
_SERVERS = {"worker": 2, "ps": 2}
_PARAMETER_SERVER = {
    "placement": "parameter_server",
    "processes": _SERVERS,
}
_HYBRID = {"placement": "hybrid", "processes": {"ps": 2}}
_CLUSTERS: dict[str, dict[str, Any]] = {
    "single": {},
    _FIT: _PARAMETER_SERVER,
    _FIT_SHARED: _PARAMETER_SERVER,
    "parameter_server": _PARAMETER_SERVER,
    "hybrid": _HYBRID,
    "mirrored": {"placement": "mirrored", "devices": 2},
}
_STALENESS = {"no prefetch": 0, "prefetch": 5}
_FAR_STEPS = 600
"""Until the loss falls slowly: a steep curve that lags a little looks like a worse one."""


@dataclasses.dataclass
class Bar:
    """A ratio and what it must be."""

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def race(folder: pathlib.Path) -> tuple[dict[str, list[Turn]], dict[str, Any]]:
    """Turns of every contestant, and the hybrid trainer's first report (the ids of a batch)."""
    problem = {"rows": 1_000_000, "batch_size": _BATCH_SIZE.value}
    contestants = [_contestant(name, problem, folder) for name in _CLUSTERS]
    turns, ready = in_turns(contestants, {name: _steps(name) for name in _CLUSTERS}, _ROUNDS.value)
    return turns, ready["hybrid"]


def bars(
    turns: dict[str, list[Turn]], far: dict[str, list[Turn]], ids: dict[str, Any]
) -> list[Bar]:
    def ratio(name: str, of: str, cost: Callable[[Turn], float]) -> float:
        return _median_ratio(turns[name], turns[of], cost)

    coordinator = statistics.median(
        turn.cpu_seconds["chief"] / turn.cpu for turn in turns["parameter_server"]
    )
    nearer = _median_ratio(far["prefetch"], far["no prefetch"], _rate)
    losses = [_final_loss(far[name]) for name in ("prefetch", "no prefetch")]
    return [
        Bar(
            "parameter_server: examples/s of fit", ratio("parameter_server", _FIT, _rate), 1.4, True
        ),
        Bar(
            "parameter_server: CPU of single",
            ratio("parameter_server", "single", _cpu),
            1.25,
            False,
        ),
        Bar("parameter_server: coordinator's share of CPU", coordinator, 0.05, False),
        Bar("hybrid: CPU of single", ratio("hybrid", "single", _cpu), 1.35, False),
        Bar("hybrid, 50 ms a pull: speed of prefetch", nearer, 2.0, True),
        Bar("hybrid, 50 ms a pull: final loss of prefetch", losses[0] / losses[1], 1.01, False),
        Bar("hybrid: bytes with distinct ids of all ids", ids["distinct"] / ids["ids"], 0.6, False),
    ]


def _contestant(name: str, problem: dict[str, int], folder: pathlib.Path) -> Contestant:
    cluster = parse_cluster(_CLUSTERS[name])
    if name not in (_FIT, _FIT_SHARED):
        return Contestant(name, PLACED, cluster, problem, folder)
    arguments, environment = [f"--steps={_steps(name)}"], _ALL_CORES if name == _FIT else {}
    stock = "benchmarks.training.stock_fit"
    return Contestant(name, stock, cluster, problem, folder, arguments, environment)


def _steps(name: str) -> int:
    return _STEPS.value * (_LONGER if _CLUSTERS[name] is _PARAMETER_SERVER else 1)


def _rate(turn: Turn) -> float:
    return turn.steps / turn.seconds


def _cpu(turn: Turn) -> float:
    return turn.cpu / turn.steps


def _median_ratio(turns: list[Turn], others: list[Turn], cost: Callable[[Turn], float]) -> float:
    return statistics.median(cost(a) / cost(b) for a, b in zip(turns, others, strict=True))


def _final_loss(turns: list[Turn]) -> float:
    return statistics.mean(turns[-1].report["losses"])


def _shown(turns: dict[str, list[Turn]]) -> Table:
    per_thousand = 1_000 / _BATCH_SIZE.value
    table = Table(
        *("", "examples/s", "of fit", "CPU s / 1,000", "of single"),
        *("chief", "workers", "ps", "MB sent / step"),
        box=None,
    )
    for name, of_one in turns.items():

        def median(value: Callable[[Turn], float], of_one: list[Turn] = of_one) -> float:
            return statistics.median(map(value, of_one))

        roles = [
            median(lambda turn, role=role: turn.cpu_seconds.get(role, 0.0) / turn.steps)
            for role in ("chief", "worker", "ps")
        ]
        table.add_row(
            name,
            f"{_BATCH_SIZE.value * median(_rate):.0f}",
            f"{_median_ratio(of_one, turns[_FIT], _rate):.2f}",
            f"{per_thousand * median(_cpu):.3f}",
            f"{_median_ratio(of_one, turns['single'], _cpu):.2f}",
            *(f"{per_thousand * role:.3f}" if role else "" for role in roles),
            f"{median(lambda turn: turn.bytes_sent / turn.steps) / 1e6:.2f}",
        )
    return table


def main(argv: list[str]) -> None:
    del argv
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        turns, ids = race(pathlib.Path(folder))
        far, _ = in_turns(
            far_contestants(_STALENESS, pathlib.Path(folder)),
            dict.fromkeys(_STALENESS, _FAR_STEPS),
            _ROUNDS.value,
        )
    load.append(os.getloadavg())
    console = Console(width=120)
    console.print(_shown(turns))
    results = Table("", "measured", "wanted", "", box=None)
    reached = bars(turns, far, ids)
    for bar in reached:
        wanted = f"{'≥' if bar.at_least else '≤'} {bar.bound:g}"
        results.add_row(bar.name, f"{bar.value:.3f}", wanted, "" if bar.met else "missed")
    console.print(results)
    losses = {name: round(_final_loss(of_one), 4) for name, of_one in far.items()}
    console.print(f"50 ms a pull: final losses {losses}; load average before, after: {load}")
    if _OUTPUT.value:
        figures = {
            "load": load,
            "problem": {"batch_size": _BATCH_SIZE.value, "far": PROBLEM},
            "turns": {n: [dataclasses.asdict(t) for t in of_one] for n, of_one in turns.items()},
            "far": {n: [dataclasses.asdict(t) for t in of_one] for n, of_one in far.items()},
            "ids": ids,
            "bars": [dataclasses.asdict(bar) | {"met": bar.met} for bar in reached],
        }
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    app.run(main)
