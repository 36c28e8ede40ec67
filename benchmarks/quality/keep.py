"""KEEP on the simulator: GAUC of a sub-domain's click model with and without plugged knowledge.

    python -m benchmarks.quality.keep --output=runs/keep --users=6000

The super-domain is all traffic of the first 60 days, the sub-domain that of two pages afterwards
(20 days to train on, 10 to test). Two extraction models (eq. 6: a decomposed and a degenerate one)
and two downstream models go through the whole pipeline, each in its own run; a run that is
finished isn't repeated.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import datetime  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402
from absl import app, flags  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.simulator import simulate  # noqa: E402
from data.simulator.channels import simulator_spec  # noqa: E402
from data.simulator.population import NUM_SLOTS, START_MS  # noqa: E402
from modules.metrics.results import load_metrics  # noqa: E402
from tfx_pipeline.layout import Layout  # noqa: E402

_OUTPUT = flags.DEFINE_string("output", "runs/keep", "Folder of all of it.")
_USERS = flags.DEFINE_integer("users", 6_000, "Simulated users.", 100)
_EVENTS = flags.DEFINE_float("events", 120.0, "Events a user on average.", 20.0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the models.", 0)
_BASE = flags.DEFINE_string("base", "can", "Architecture of the downstream model.")
_DAY_MS = 86_400_000
_SUPER_DAYS, _TEST_FROM = 60, 80
_SUPER_TEST_FROM = 57
_PAGES = (0, 1)
_ALPHA = 0.25
"""KEEP §6.2."""


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(_OUTPUT.value).absolute()
    _data(output)
    knowledge = output / "extracted" / "1"
    for name, spec in (("items", _extraction(False)), ("categories", _extraction(True))):
        _run(output, name, spec, "super")
        arguments = [f"--output={output / name}", f"--to={knowledge}"]
        _command("extract", *arguments)
    results = {}
    for name, path in (("base", ""), ("keep", str(knowledge))):
        _run(output, name, _downstream(path), "sub")
        results[name] = _gauc(output / name)
    table = Table("events", "base", "KEEP", "gain", box=None)
    for group, base in results["base"].items():
        keep = results["keep"][group]
        table.add_row(group, f"{base:.4f}", f"{keep:.4f}", f"{keep - base:+.4f}")
    Console().print(table)


def _data(output: pathlib.Path) -> None:
    """Simulated events, cut at the day that the super-domain ends."""
    simulate(output / "data", num_users=_USERS.value, mean_events=_EVENTS.value)
    for domain in ("super", "sub"):
        (output / domain).mkdir(exist_ok=True)
        for path in sorted((output / "data").glob("events-*.parquet")):
            target = output / domain / path.name
            if not target.exists():
                events = pq.read_table(path)
                early = pc.less(events["time_ms"], _moment_ms(_SUPER_DAYS))
                pq.write_table(
                    events.filter(early if domain == "super" else pc.invert(early)), target
                )
        users = output / domain / "users.parquet"
        users.write_bytes((output / "data" / "users.parquet").read_bytes())


def _extraction(degenerate: bool) -> dict[str, Any]:
    """KEEP's concise model (§4.2.1): behaviours, item, shop, category; or the category alone."""
    spec = _spec("categories" if degenerate else "items", _SUPER_TEST_FROM)
    read = {"event", "product", "category", "merchant", "click", "conversion"}
    offered = {"category"} if degenerate else {"product", "category", "merchant"}
    spec["channels"] = [
        c
        for c in spec["channels"]
        if (c["scope"] == "sequence" and c["name"] in read)
        or (c["scope"] == "candidate" and c["name"] in offered)
    ]
    spec["tasks"] = [t for t in spec["tasks"] if t["per"] == "impression"]
    item = "category" if degenerate else "product"
    spec["knowledge"] = {"item": item, "category": "category"}
    spec["model"]["architecture"] = "din" if degenerate else "two_tower"
    spec["training"]["finetune"] |= {"epochs": 3, "pairwise_weight": _ALPHA}
    return spec


def _downstream(path: str) -> dict[str, Any]:
    spec = _spec("sub", _TEST_FROM)
    pages = [f"a{page}.b{slot}" for page in _PAGES for slot in range(NUM_SLOTS)]
    spec["source"]["where"] = {"column": "spm", "values": pages}
    spec["channels"] = [c for c in spec["channels"] if c["name"] != "conversion"]
    spec["tasks"] = [t for t in spec["tasks"] if t["name"] == "click"]
    spec["knowledge"] = {"item": "product", "category": "category", "path": path}
    spec["model"]["architecture"] = _BASE.value
    spec["training"]["finetune"]["epochs"] = 4
    spec["evaluation"] = {"activity_edges": [5, 10, 15]}
    return spec


def _spec(name: str, test_from: int) -> dict[str, Any]:
    spec = simulator_spec()
    moment = datetime.datetime.fromtimestamp(_moment_ms(test_from) / 1000, datetime.timezone.utc)
    spec |= {"name": name, "split": {"by": "time", "at": moment.isoformat()}}
    for task in spec["tasks"]:
        del task["thresholds"]
    spec["model"] = {"hidden_dim": 32, "tower_dims": [64, 32]}
    spec["training"] = {
        "seed": _SEED.value,
        "pretrain": {"epochs": 0},
        "finetune": spec["training"]["finetune"],
    }
    return spec


def _moment_ms(day: int) -> int:
    return START_MS + day * _DAY_MS


def _run(output: pathlib.Path, name: str, spec: dict[str, Any], domain: str) -> None:
    path = output / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    _command("run", f"--spec={path}", f"--data={output / domain}", f"--output={output / name}")


def _command(*arguments: str) -> None:
    print("tfx_pipeline", *arguments, flush=True)
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tfx_pipeline", *arguments], check=True)


def _gauc(run: pathlib.Path) -> dict[str, float]:
    """GAUC of click by the user's number of events, as the run's Evaluator has it."""
    folders = (Layout(run).artifacts / "Evaluator" / "evaluation").glob("[0-9]*")
    evaluation = load_metrics(max(folders, key=lambda folder: int(folder.name)))
    return {name: evaluation.value("click", "gauc", slice_=name) for name in evaluation.slices}


if __name__ == "__main__":
    app.run(main)
