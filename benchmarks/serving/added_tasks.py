"""Many added tasks against one, on one backbone: latency and memory, all tasks asked.

    python -m benchmarks.serving.added_tasks [--run=runs/simulator] [--output=added_tasks.json]

The run needs a model with `model.added_tasks: true`. Two servers have the same model, one with a
task beside it and one with many (random weights of the size that `add_tasks` writes); they are
asked in turns, and the ratio of a round is of turns one after the other. No two requests are about
the same user. Beside it, what the tasks would cost as models of their own: a server with the model
under several names.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import statistics
import tempfile
from collections.abc import Iterator

import numpy as np
import psutil
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.serving import load, run_requests
from data.spec import Task
from modules.models.added_task import AddedTask
from modules.training import added_tasks
from serving import protos
from serving.local import LocalServer, local_server

_RUN = flags.DEFINE_string("run", "runs/simulator", "A finished run.")
_TASKS = flags.DEFINE_integer("tasks", 20, "How many are many.", lower_bound=2)
_SECONDS = flags.DEFINE_float("seconds", 3.0, "Length of a turn.", lower_bound=0.5)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
_MODELS = flags.DEFINE_integer("models", 4, "Models in one server; 1 leaves it out.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_BARS = {"latency": 1.5, "memory": 1.2}
_SETTINGS = ((1, 1), (8, 1), (1, 8))
"""(rows a request, clients at once)"""
_BOTTLENECK = 8
MODEL = "default"


def main(argv: list[str]) -> None:
    del argv
    run = pathlib.Path(_RUN.value)
    pushed, users = run_requests.pushed_model(run), run_requests.users(run)
    examples = run_requests.fresh(users)
    figures: dict[str, float] = {}
    with _served(pushed, 1) as one, _served(pushed, _TASKS.value) as many:
        for rows, clients in _SETTINGS:
            ratios = []
            for _ in range(_ROUNDS.value):
                single, all_tasks = (
                    _median_latency(server, examples, rows, clients) for server in (one, many)
                )
                ratios.append(all_tasks / single)
            name = f"{rows} rows a request, {clients} clients"
            figures[f"{name}: 1 task, ms"] = 1e3 * single
            figures[f"{name}: latency, {_TASKS.value} tasks : 1"] = statistics.median(ratios)
        figures["1 task, MB"] = _megabytes(one)
        figures[f"memory, {_TASKS.value} tasks : 1"] = _megabytes(many) / _megabytes(one)
    if _MODELS.value > 1:
        with _models(pushed, _MODELS.value) as several, _models(pushed, 1) as single:
            for number in range(_MODELS.value):
                _median_latency(several, examples, 1, 1, f"{MODEL}_{number}")
            _median_latency(single, examples, 1, 1, f"{MODEL}_0")
            a_model = (_megabytes(several) - _megabytes(single)) / (_MODELS.value - 1)
        figures["another model of its own, MB"] = a_model
        figures[f"memory, {_TASKS.value} models : 1"] = 1 + (
            (_TASKS.value - 1) * a_model / figures["1 task, MB"]
        )
    _show(figures)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2))


@contextlib.contextmanager
def _served(pushed: pathlib.Path, num_tasks: int) -> Iterator[LocalServer]:
    """The model with so many tasks beside it."""
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder)
        (base / "1").symlink_to(pushed.absolute())
        _write_tasks(pushed, base / "tasks", num_tasks)
        with local_server(base, MODEL) as server:
            yield server


def _write_tasks(pushed: pathlib.Path, folder: pathlib.Path, count: int) -> None:
    """Tasks of both kinds, with random weights: what they say doesn't matter here."""
    spec = json.loads((pushed.parents[2] / "spec.json").read_text())["model"]
    rng = np.random.default_rng(0)
    for number in range(count):
        per = "user" if number % 4 == 3 else "impression"
        task = Task(name=f"task_{number}", label="label", per=per)
        made = AddedTask(task, spec["num_blocks"] + 1, spec["hidden_dim"], _BOTTLENECK)
        for variable in made.trainable_variables:
            variable.assign(0.1 * rng.normal(size=variable.shape))
        added_tasks.write(folder, task, made, added_tasks.backbone_of(str(pushed)), 1, {})


@contextlib.contextmanager
def _models(pushed: pathlib.Path, count: int) -> Iterator[LocalServer]:
    """The model under several names, each loaded for itself."""
    with tempfile.TemporaryDirectory() as folder:
        config = []
        for number in range(count):
            base = pathlib.Path(folder, str(number))
            base.mkdir()
            (base / "1").symlink_to(pushed.absolute())
            config.append(
                f'config {{ name: "{MODEL}_{number}" base_path: "{base}"'
                ' model_platform: "tensorflow" }'
            )
        path = pathlib.Path(folder, "models.config")
        path.write_text(f"model_config_list {{ {' '.join(config)} }}")
        flags = (f"--model_config_file={path}",)
        with local_server(None, f"{MODEL}_{count - 1}", flags=flags) as server:
            yield server


def _median_latency(
    server: LocalServer, examples: Iterator[bytes], rows: int, clients: int, model: str = MODEL
) -> float:
    def requests() -> Iterator[bytes]:
        while True:
            request = protos.PredictRequest.FromString(
                run_requests.predict_request(model, list(itertools.islice(examples, rows)))
            )
            request.model_spec.signature_name = "added_tasks"
            yield request.SerializeToString()

    few = list(itertools.islice(requests(), 20 * clients))
    load.keep_busy(server.target, few, clients)
    made = list(itertools.islice(requests(), int(800 * _SECONDS.value / rows)))
    return statistics.median(load.keep_busy(server.target, made, clients, _SECONDS.value))


def _megabytes(server: LocalServer) -> float:
    return psutil.Process(server.process.pid).memory_info().rss / 1e6


def _show(figures: dict[str, float]) -> None:
    table = Table("", "", "bar")
    for name, value in figures.items():
        bar = next((bar for kind, bar in _BARS.items() if kind in name and "tasks" in name), None)
        table.add_row(name, f"{value:.2f}", f"≤ {bar}" if bar else "")
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
