"""Step time against the rows of a table, and how soon a table of 10⁸ rows is ready.

    python -m benchmarks.training.table_rows [--placements=single,parameter_server,hybrid]

One id table of 16 floats a row; the batches name as many different ids whatever its size, spread
over all of it. Of one placement all sizes are up at once and train in turns; ratios are of one
round, and the median of the rounds is shown. 10⁸ rows take 7 GB, and twice as much where a table
is on two devices. `multi_worker_mirrored` goes to 10⁷: TensorFlow sends every variable to all
hosts when it is made, and keeps what it sent and got beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import psutil
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.training.contestant import PLACED, Contestant
from modules.training.cluster.config import ROLES, parse_cluster

_PLACEMENTS = flags.DEFINE_list(
    "placements",
    ["single", "mirrored", "multi_worker_mirrored", "parameter_server", "hybrid"],
    "Which ones.",
)
_ROWS = flags.DEFINE_list("rows", ["100000", "1000000", "10000000", "100000000"], "Table sizes.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each size.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 32, "Steps of a turn.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_CLUSTERS: dict[str, dict[str, Any]] = {
    "single": {},
    "parameter_server": {
        "placement": "parameter_server",
        "processes": {"worker": 2, "ps": 2},
        "steps_per_call": 8,
    },
    "hybrid": {"placement": "hybrid", "processes": {"ps": 2}},
    "mirrored": {"placement": "mirrored", "devices": 2},
    "multi_worker_mirrored": {"placement": "multi_worker_mirrored", "processes": {"worker": 1}},
}
_MOST_ROWS = {"multi_worker_mirrored": 10_000_000}
_COPIES = {"mirrored": 2, "multi_worker_mirrored": 2}
_ROW_BYTES = 70
"""16 floats, the optimizer's one, a flag."""
_PROCESS_BYTES = 400_000_000
"""An estimate of what a process holds for itself, without its tables."""
_PROBLEM = {"ids": 90_000, "tables": 1, "batch_size": 64, "hidden_dim": 16, "num_blocks": 1}
_BOUND = 1.3


@dataclasses.dataclass(frozen=True)
class Size:
    """One placement's figures at one size: medians; ratios to the smallest table of a round."""

    placement: str
    rows: int
    ready_seconds: float
    step_seconds: float
    wall_ratio: float
    cpu_ratio: float
    rss_gigabytes: float


def sizes(placement: str, folder: pathlib.Path) -> list[Size]:
    """Measures a placement at every size; the largest is started first, and alone.

    Raises:
      MemoryError: they don't fit beside what else the machine does.
    """
    most = _MOST_ROWS.get(placement, sys.maxsize)
    rows = [int(count) for count in _ROWS.value if int(count) <= most]
    cluster = parse_cluster(_CLUSTERS[placement])
    processes = len(rows) * sum(map(cluster.count, ROLES))
    tables = sum(rows) * _ROW_BYTES * _COPIES.get(placement, 1)
    needed = tables + processes * _PROCESS_BYTES
    if needed > psutil.virtual_memory().available:
        raise MemoryError(
            f"{placement}: {needed / 1e9:.0f} GB are needed at once, and"
            f" {psutil.virtual_memory().available / 1e9:.0f} GB are free; leave out the largest by"
            " --rows"
        )
    with contextlib.ExitStack() as running:
        contestants, ready = {}, {}
        for count in sorted(rows, reverse=True):
            contestants[count] = running.enter_context(
                Contestant(
                    f"{placement}-{count}",
                    PLACED,
                    cluster,
                    {**_PROBLEM, "rows": count},
                    folder,
                    ["--warm_up=1"],
                )
            )
            ready[count] = contestants[count].wait_until_ready()["seconds"]
            print(f"{placement}, {count:,} rows: ready in {ready[count]:.1f} s", file=sys.stderr)
        for contestant in contestants.values():
            contestant.train(_STEPS.value)  # warm-up of what the first step didn't reach
        rounds = [
            {count: contestants[count].train(_STEPS.value) for count in rows}
            for _ in range(_ROUNDS.value)
        ]
        memory = {count: sum(contestants[count].rss_bytes().values()) for count in rows}
    return [
        Size(
            placement,
            count,
            ready[count],
            statistics.median(turns[count].seconds / _STEPS.value for turns in rounds),
            statistics.median(turns[count].seconds / turns[rows[0]].seconds for turns in rounds),
            statistics.median(turns[count].cpu / turns[rows[0]].cpu for turns in rounds),
            memory[count] / 1e9,
        )
        for count in rows
    ]


def main(argv: list[str]) -> None:
    del argv
    load = [os.getloadavg()]
    measured: list[Size] = []
    for placement in _PLACEMENTS.value:
        with tempfile.TemporaryDirectory() as folder:
            measured += sizes(placement, pathlib.Path(folder))
    load.append(os.getloadavg())
    table = Table(
        *("", "rows", "first step after s", "ms / step", "ratio", "CPU ratio", "all processes' GB"),
        box=None,
    )
    for size in measured:
        table.add_row(
            size.placement,
            f"{size.rows:,}",
            f"{size.ready_seconds:.1f}",
            f"{1e3 * size.step_seconds:.1f}",
            f"{size.wall_ratio:.2f}{'' if size.wall_ratio <= _BOUND else ' missed'}",
            f"{size.cpu_ratio:.2f}",
            f"{size.rss_gigabytes:.1f}",
        )
    console = Console(width=110)
    console.print(table)
    console.print(f"load average before, after: {load}")
    if _OUTPUT.value:
        figures = {"load": load, "sizes": [dataclasses.asdict(size) for size in measured]}
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    app.run(main)
