"""Faults, one at a time, in a real local cluster that fine-tunes the simulator.

    python -m benchmarks.training.faults --run=runs/simulator --results=faults.jsonl \
        [--placements=hybrid] [--faults="kill -9,SIGSTOP 60 s"] [--output=faults.md]

Reads what Transform wrote in a finished run. Each fault strikes after the first checkpoint (a
truncated shard: after the second). A row is one training; it is added to `--results` when it has
ended, and rows that are there already aren't measured again. Needs root: networks are cut by
routing rules in a network namespace of the benchmark's own, disks are filled in a mount of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.training import injection
from benchmarks.training.disturbed import Training, TrainingFailed
from benchmarks.training.injection import FAULTS, Victim
from data.spec import Spec, parse_spec
from modules.training.incidents import Incidents
from tfx_pipeline.layout import Layout

_RUN = flags.DEFINE_string("run", "runs/simulator", "Output folder of a finished run.")
_PLACEMENTS = flags.DEFINE_list("placements", [], "Some of the clusters; default: all.")
_FAULTS = flags.DEFINE_list("faults", [], "Some of the faults; default: all.")
_RESULTS = flags.DEFINE_string("results", "faults.jsonl", "Rows so far, one JSON object a line.")
_OUTPUT = flags.DEFINE_string("output", None, "File that the table is also written to (Markdown).")

_UNDISTURBED = "undisturbed"
_REPEATS = 2
"""Of the undisturbed run: asynchronous ones differ by themselves."""
_PATIENCE_SECONDS = 600.0
_MAX_AUC_LOSS = 0.003
_SETTINGS = {"report_every_steps": 5, "checkpoint": {"every_steps": 20}}

CHIEF, WORKER, PS = Victim("chief", 0), Victim("worker", 0), Victim("ps", 0)
CLUSTERS: dict[str, dict[str, Any]] = {
    "parameter_server": {
        "placement": "parameter_server",
        "processes": {"worker": 2, "ps": 2},
        "steps_per_call": 4,
        "min_shard_bytes": 1024,
    },
    "hybrid": {"placement": "hybrid", "processes": {"ps": 2}},
    "hybrid_two_trainers": {"placement": "hybrid", "processes": {"worker": 1, "ps": 2}},
    "multi_worker_mirrored": {
        "placement": "multi_worker_mirrored",
        "processes": {"worker": 1},
    },
}
_KILL, _STOP, _CUT, _FULL, _TRUNCATED = FAULTS
CASES: dict[str, dict[str, tuple[Victim, ...]]] = {
    "parameter_server": {
        _KILL: (WORKER, PS, CHIEF),
        _STOP: (WORKER, PS, CHIEF),
        _CUT: (WORKER, PS, CHIEF),
        _FULL: (CHIEF,),
        _TRUNCATED: (PS, CHIEF),
    },
    "hybrid": {
        _KILL: (PS, CHIEF),
        _STOP: (PS, CHIEF),
        _CUT: (PS, CHIEF),
        _FULL: (CHIEF,),
        _TRUNCATED: (PS, CHIEF),
    },
    "hybrid_two_trainers": {_KILL: (WORKER,), _STOP: (WORKER,), _CUT: (WORKER,)},
    "multi_worker_mirrored": {_KILL: (WORKER,)},
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One training; `failed` says why it didn't end, and then there are no figures."""

    cluster: str
    fault: str
    victim: str
    auc: float = 0.0
    seconds: float = 0.0
    incidents: dict[str, Any] = dataclasses.field(default_factory=dict)
    failed: str = ""

    @property
    def name(self) -> tuple[str, str, str]:
        return self.cluster, self.fault, self.victim


def spec_of(run: pathlib.Path) -> Spec:
    """The run's, small enough to be trained thirty times; its id tables are large ones."""
    raw = json.loads(Layout(run).spec.read_text())
    raw["sequence"] |= {"max_length": 16, "window": 64}
    raw["model"] |= {"hidden_dim": 32, "num_blocks": 1, "dropout": 0.0, "full_softmax_rows": 500}
    raw["training"]["pretrain"]["epochs"] = 0
    raw["training"]["finetune"] |= {"epochs": 4, "batch_size": 64}
    return parse_spec(raw)


def measure(run: pathlib.Path, cluster: str, fault: str, victim: Victim | None) -> Row:
    """Trains once, with the fault."""
    name = _name(victim)
    with tempfile.TemporaryDirectory(prefix="fault-", dir=_scratch()) as folder:
        training = Training(_fn_args(run, cluster), pathlib.Path(folder))
        with contextlib.ExitStack() as held:
            if fault == _FULL:
                held.enter_context(injection.small_disk(training.state))
            held.enter_context(training)
            try:
                if victim:
                    training.wait_for("checkpoint_saved")
                    FAULTS[fault](training, victim)
                seconds = training.wait(_PATIENCE_SECONDS)
            except TrainingFailed as error:
                _keep(pathlib.Path(folder), cluster, fault, name)
                return Row(cluster, fault, name, failed=str(error))
            _keep(pathlib.Path(folder), cluster, fault, name)
            told = dataclasses.asdict(Incidents.of(training.events()))
            return Row(cluster, fault, name, training.auc(), seconds, told)


def _fn_args(run: pathlib.Path, cluster: str) -> dict[str, Any]:
    artifacts = Layout(run).artifacts / "Transform"
    examples = _newest(artifacts / "transformed_examples")
    return {
        "train_files": [str(examples / "Split-train/*")],
        "eval_files": [str(examples / "Split-eval/*")],
        "transform_output": str(_newest(artifacts / "transform_graph")),
        "base_model": None,
        "custom_config": {
            "spec": spec_of(run).model_dump_json(),
            "cluster": CLUSTERS[cluster] | _SETTINGS,
        },
    }


def _newest(folder: pathlib.Path) -> pathlib.Path:
    return max(folder.resolve().iterdir(), key=lambda path: int(path.name))


def _scratch() -> pathlib.Path:
    folder = pathlib.Path(_RESULTS.value).resolve().with_suffix(".runs")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _keep(folder: pathlib.Path, *name: str) -> None:
    """What was told, for reading; not input and checkpoints."""
    kept = _scratch() / "-".join(filter(None, name)).replace(" ", "_").replace(",", "")
    shutil.rmtree(kept, ignore_errors=True)
    for path in [*folder.rglob("*.jsonl"), *folder.rglob("log*/*.log"), folder / "log"]:
        kept.mkdir(parents=True, exist_ok=True)
        if path.exists():
            shutil.copy(path, kept)


def wanted(done: set[tuple[str, str, str]]) -> Iterator[tuple[str, str, Victim | None]]:
    """What is asked for and not measured yet: one undisturbed run first, the other last."""
    first, *others = (f"{_UNDISTURBED} {n}" for n in range(1, _REPEATS + 1))
    for fault in (first, *(_FAULTS.value or FAULTS), *others):
        for cluster in _PLACEMENTS.value or CLUSTERS:
            for victim in CASES[cluster].get(fault, ()) if fault in FAULTS else (None,):
                if (cluster, fault, _name(victim)) not in done:
                    yield cluster, fault, victim


def _name(victim: Victim | None) -> str:
    return f"{victim.role} {victim.index}" if victim else ""


def table(rows: list[Row], style: box.Box = box.SIMPLE) -> Table:
    """What each fault did, beside the undisturbed runs of its cluster."""
    shown = Table(
        *("cluster", "fault", "of", "ended", "AUC", "against undisturbed", "s", "s more"),
        *("stood still, s", "steps repeated", "what happened"),
        box=style,
    )
    for cluster in CLUSTERS:
        ours = [row for row in rows if row.cluster == cluster]
        calm = [row for row in ours if row.fault.startswith(_UNDISTURBED) and not row.failed]
        auc = statistics.mean(row.auc for row in calm) if calm else float("nan")
        seconds = statistics.mean(row.seconds for row in calm) if calm else float("nan")
        for row in ours:
            if row.failed:
                shown.add_row(*row.name, "NO", *[""] * 6, row.failed.splitlines()[-1])
                continue
            shown.add_row(
                *row.name,
                "yes" if row.auc - auc >= -_MAX_AUC_LOSS else "AUC LOST",
                f"{row.auc:.4f}",
                f"{row.auc - auc:+.4f}",
                f"{row.seconds:.0f}",
                f"{row.seconds - seconds:+.0f}",
                f"{row.incidents['seconds_lost']:.0f}",
                str(row.incidents["steps_repeated"]),
                "; ".join(i["what"] for i in row.incidents["incidents"]) or "–",
            )
    return shown


def main(argv: list[str]) -> None:
    injection.isolated(["-m", "benchmarks.training.faults", *sys.argv[1:]])
    del argv
    results, run = pathlib.Path(_RESULTS.value), pathlib.Path(_RUN.value)
    lines = results.read_text().splitlines() if results.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    for cluster, fault, victim in wanted({row.name for row in rows}):
        rows.append(measure(run, cluster, fault, victim))
        with results.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(rows[-1])) + "\n")
        print(json.dumps(dataclasses.asdict(rows[-1])), flush=True)
    Console().print(table(rows))
    if _OUTPUT.value:
        with io.StringIO() as text:
            Console(file=text, width=1000).print(table(rows, box.MARKDOWN))
            pathlib.Path(_OUTPUT.value).write_text(text.getvalue())


if __name__ == "__main__":
    app.run(main)
