"""What staleness buys and costs: AUC on the simulator, and speed with parameter servers far away.

    python -m benchmarks.training.staleness --run=runs/simulator --epochs=2 --seeds=0,1,2

AUC: `hybrid` fine-tunes from scratch on what Transform wrote in a finished run, in a local cluster
(`benchmarks/quality/placements.py`). Speed: of the same steps with 50 ms added to every pull
(`far.py`), in turns; the median over the rounds of the ratio to staleness 0.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import json  # noqa: E402
import os  # noqa: E402
import pathlib  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
from typing import Any  # noqa: E402

import tensorflow as tf  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.quality.placements import of_seed  # noqa: E402
from benchmarks.training.contestant import Turn, in_turns  # noqa: E402
from benchmarks.training.far import far_contestants  # noqa: E402
from tfx_pipeline.comparison.finished_run import FinishedRun, finished_run  # noqa: E402
from tfx_pipeline.comparison.training import train  # noqa: E402
from tfx_pipeline.layout import output_of  # noqa: E402

_BOUNDS = flags.DEFINE_list("staleness", ["0", "1", "4", "16"], "Bounds to compare.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each bound for its speed.", lower_bound=1)
_STEPS = 150
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")


def quality(run: FinishedRun, bound: int, seed: int) -> dict[str, float]:
    """AUC of every binary task after fine-tuning."""
    spec = of_seed(run.spec, seed)
    cluster: dict[str, Any] = {
        "placement": "hybrid",
        "processes": {"ps": 2},
        "staleness": bound,
        "fetchers": 4,
    }
    with tempfile.TemporaryDirectory() as folder:
        found = train(run, spec, pathlib.Path(folder), cluster)
    print(f"staleness {bound}, seed {seed}: {json.dumps(found)}", flush=True)
    return found


def speeds(bounds: list[int]) -> dict[int, list[Turn]]:
    """Turns by bound, with 50 ms added to every pull."""
    names = {f"staleness-{bound}": bound for bound in bounds}
    with tempfile.TemporaryDirectory() as folder:
        turns, _ = in_turns(
            far_contestants(names, pathlib.Path(folder)),
            dict.fromkeys(names, _STEPS),
            _ROUNDS.value,
        )
    return {bound: turns[name] for name, bound in names.items()}


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    run = finished_run(output_of(flags.FLAGS.run))
    bounds = [int(bound) for bound in _BOUNDS.value]
    load = [os.getloadavg()]
    turns = speeds(bounds)
    seeds = [int(seed) for seed in flags.FLAGS.seeds]
    found = {bound: [quality(run, bound, seed) for seed in seeds] for bound in bounds}
    load.append(os.getloadavg())
    tasks = list(found[bounds[0]][0])
    means = {
        bound: {task: statistics.mean(one[task] for one in found[bound]) for task in tasks}
        for bound in bounds
    }
    figures = [
        {
            "staleness": bound,
            "steps_per_second": statistics.median(t.steps / t.seconds for t in turns[bound]),
            "speed": statistics.median(
                first.seconds / turn.seconds
                for first, turn in zip(turns[bounds[0]], turns[bound], strict=True)
            ),
            "auc": statistics.mean(means[bound].values()),
            "tasks": means[bound],
        }
        for bound in bounds
    ]
    table = Table(
        *("staleness", "steps/s", f"of staleness {bounds[0]}", "mean AUC", "difference"),
        *tasks,
        box=None,
    )
    for one in figures:
        table.add_row(
            str(one["staleness"]),
            f"{one['steps_per_second']:.1f}",
            f"{one['speed']:.2f}",
            f"{one['auc']:.4f}",
            f"{one['auc'] - figures[0]['auc']:+.4f}",
            *(f"{auc:.4f}" for auc in one["tasks"].values()),
        )
    console = Console(width=130)
    console.print(table)
    console.print(f"load average before, after: {load}")
    if _OUTPUT.value:
        whole = {"load": load, "seeds": seeds, "bounds": figures, "runs": found}
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    app.run(main)
