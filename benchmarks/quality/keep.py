"""KEEP's Tables 2 and 7 on the simulator: GAUC of clicks in a sub-domain, model by model.

    python -m benchmarks.quality.keep --output=runs/keep --users=6000 --seeds=0,1,2

The super-domain is all traffic, the sub-domain that of two pages. KEEP's two extraction models
(eq. 6: a decomposed and a degenerate one) learn from the first 60 days, each in its own run; all
downstream models from the 20 days after, with the same instances, epochs and seeds (`compare`),
and are tested on the last 10. What is finished isn't repeated.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import collections  # noqa: E402
import datetime  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402
from absl import app, flags  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from data.simulator import simulate  # noqa: E402
from data.simulator.channels import simulator_spec  # noqa: E402
from data.simulator.population import NUM_SLOTS, START_MS  # noqa: E402
from modules.metrics.activity import bucket_names, bucket_of  # noqa: E402
from modules.metrics.gauc import gauc  # noqa: E402
from modules.models.architectures import ARCHITECTURES  # noqa: E402
from tfx_pipeline.comparison import trials  # noqa: E402
from tfx_pipeline.comparison.finished_run import finished_run  # noqa: E402
from tfx_pipeline.comparison.variants import parse_variants  # noqa: E402
from tfx_pipeline.layout import Layout  # noqa: E402

_OUTPUT = flags.DEFINE_string("output", "runs/keep", "Folder of all of it.")
_USERS = flags.DEFINE_integer("users", 6_000, "Simulated users.", 100)
_EVENTS = flags.DEFINE_float("events", 120.0, "Events a user on average.", 20.0)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the downstream models.")
_MODELS = flags.DEFINE_list("models", None, "Some of the rows; all unless given.")
_DAY_MS = 86_400_000
_SUPER_DAYS, _TEST_FROM = 60, 80
_SUPER_TEST_FROM = 57
_PAGES = (0, 1)
_ALPHA = 0.25
"""KEEP §6.2."""
_EDGES = (15, 30, 50)
"""Of the user's events in the 20 days, of all pages."""
_OWN, _ALONE = "domain.train_on:domain", "knowledge:null"
_BIDIRECTIONAL = "model.architecture:bert,sequence.targets:expanded"
_PRETRAINED = f"{_BIDIRECTIONAL},{_OWN},{_ALONE},training.pretrain.epochs:20"
"""An epoch masks a fifth of the items: five times the epochs that fine-tuning has of labels."""
_S3 = "training.pretrain.s3"
_ROWS = {
    "base": f"model.architecture:can,{_OWN},{_ALONE}",
    "sample-merging": f"model.architecture:can,{_ALONE}",
    "conet": f"model.architecture:conet,{_ALONE}",
    "darec": f"model.architecture:darec,{_ALONE}",
    "keep-c": f"model.architecture:keep_c,{_ALONE}",
    "bert4rec": _PRETRAINED,
    "s3-rec": f"{_PRETRAINED},training.pretrain.objective:s3,{_S3}.item:product,"
    f"{_S3}.attributes:[category,merchant]",
    "keep": f"model.architecture:can,{_OWN}",
}
"""Of Table 2, as `compare` is told."""


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(_OUTPUT.value).absolute()
    _data(output)
    knowledge = output / "extracted" / "1"
    for name, spec in (("items", _extraction(False)), ("categories", _extraction(True))):
        _run(output, name, spec, "super")
        _command("extract", f"--output={output / name}", f"--to={knowledge}")
    _run(output, "downstream", _downstream(knowledge), "sub")
    run = output / "downstream"
    wanted = _MODELS.value or list(_ROWS)
    models = ",".join(f"{name}={_ROWS[name]}" for name in wanted)
    seeds = ",".join(_SEEDS.value)
    _command("compare", f"--run={run}", f"--models={models}", f"--seeds={seeds}")
    found = _predictions(run, models)
    table = Table("events", *found, box=None)
    for place, group in enumerate(["all", *bucket_names(_EDGES)]):
        values = {
            name: np.array([_gauc(one, place - 1) for one in of_seeds])
            for name, of_seeds in found.items()
        }
        table.add_row(group, *(f"{v.mean():.4f} ± {v.std():.4f}" for v in values.values()))
    Console(width=200).print(table)


def _predictions(run: pathlib.Path, models: str) -> dict[str, list[pa.Table]]:
    """Of every seed of every model, where `compare` left them."""
    layout = Layout(run)
    finished = finished_run(layout)
    pretrained = lambda word: ARCHITECTURES[word].pretraining is not None  # noqa: E731
    variants = parse_variants(models, finished.spec, {}, pretrained)
    seeds = [int(seed) for seed in _SEEDS.value]
    found = collections.defaultdict(list)
    for trial in trials.plan(variants, seeds, finished, layout.comparison):
        found[trial.model].append(trials.predictions_of(trial))
    return found


def _gauc(predictions: pa.Table, bucket: int) -> float:
    """GAUC of the users whose activity falls into a bucket; of all for -1."""
    if bucket >= 0:
        of_target = bucket_of(predictions["activity"].to_numpy(), _EDGES)
        predictions = predictions.filter(pa.array(of_target == bucket))
    users = pc.dictionary_encode(predictions["user_id"].combine_chunks()).indices.to_numpy()
    return gauc(users, predictions["label"].to_numpy(), predictions["score"].to_numpy())


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


def _downstream(knowledge: pathlib.Path) -> dict[str, Any]:
    """Of all traffic; `compare` makes the rows of it. Items are what pre-training predicts."""
    spec = _spec("downstream", _TEST_FROM)
    pages = [f"a{page}.b{slot}" for page in _PAGES for slot in range(NUM_SLOTS)]
    spec["domain"] = {"channel": "spm", "values": pages}
    spec["channels"] = [
        c | {"mask_prediction": c["scope"] == "sequence" and c["name"] == "product"}
        for c in spec["channels"]
        if c["name"] != "conversion"
    ]
    spec["tasks"] = [t for t in spec["tasks"] if t["name"] == "click"]
    spec["knowledge"] = {"item": "product", "category": "category", "path": str(knowledge)}
    spec["model"]["architecture"] = "can"
    spec["training"]["finetune"]["epochs"] = 4
    spec["evaluation"] = {"activity_edges": list(_EDGES)}
    return spec


def _spec(name: str, test_from: int) -> dict[str, Any]:
    spec = simulator_spec()
    moment = datetime.datetime.fromtimestamp(_moment_ms(test_from) / 1000, datetime.timezone.utc)
    spec |= {"name": name, "split": {"by": "time", "at": moment.isoformat()}}
    for task in spec["tasks"]:
        del task["thresholds"]
    spec["model"] = {"hidden_dim": 32, "tower_dims": [64, 32]}
    spec["training"] = {
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


if __name__ == "__main__":
    app.run(main)
