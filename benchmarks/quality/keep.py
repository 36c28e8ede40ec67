"""KEEP's Tables 2 to 4 and 6 to 8 on the simulator: GAUC of clicks in a sub-domain, row by row.

    python -m benchmarks.quality.keep --output=runs/keep --seeds=0,1,2

The super-domain is all traffic, the sub-domain that of two pages. KEEP's two extraction models
(eq. 6: a decomposed and a degenerate one) learn from the first 60 days, each in its own run; all
downstream models from the 20 days after, with the same instances, epochs and seeds (`compare`),
and are tested on the last 10. Their histories hold all traffic's events of these days, or, with
`--own_histories`, the sub-domain's alone. `compare` writes `page.md` and `page.html` there (or
`page_own_histories`): the rows of all tables, and Table 7 as GAUC by activity.

Not there: K_ui of an exact (user, item) pair (Table 3's last row, Table 8's first), which eq. 6
stands for. In Table 6, fewer days are fewer labels, shorter histories and fewer known users at
once. A folder is of one commit and one set of arguments: what is in it isn't made again.
"""

from __future__ import annotations

from tfx_pipeline import environment

environment.prepare()  # Before TensorFlow is imported.

import datetime  # noqa: E402
import pathlib  # noqa: E402
import shutil  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import pyarrow.compute as pc  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import yaml  # noqa: E402
from absl import app, flags  # noqa: E402

from data.simulator import simulate  # noqa: E402
from data.simulator.channels import simulator_spec  # noqa: E402
from data.simulator.population import NUM_SLOTS, START_MS  # noqa: E402

_OUTPUT = flags.DEFINE_string("output", "runs/keep", "Folder of all of it.")
_USERS = flags.DEFINE_integer("users", 16_000, "Simulated users.", 100)
_EVENTS = flags.DEFINE_float("events", 120.0, "Events a user on average.", 20.0)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the downstream models.")
_MODELS = flags.DEFINE_list("models", None, "Some of the rows; all unless given.")
_OWN_HISTORIES = flags.DEFINE_bool(
    "own_histories",
    False,
    "The downstream models' histories hold the sub-domain's events alone, as its logs do; for"
    " `base` and what is plugged into it, as the others know two domains or mask all traffic's.",
)
_DAY_MS = 86_400_000
_SUPER_DAYS, _TEST_FROM = 60, 80
_SUPER_TEST_FROM = 57
_PAGES = (0, 1)
_DECAY = 1.0
"""For all rows: at 0.01 they overfit, those with knowledge of each user the most (docs/keep.md)."""
_ALPHA = 0.25
"""KEEP §6.2."""
_EDGES, _OWN_EDGES = (15, 30, 50), (5, 10, 15)
"""Of the user's events in the 20 days, of all pages and of the sub-domain's."""
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
}
"""Of Table 2, as `compare` is told: what plugs nothing in."""


class _Knowledge(NamedTuple):
    """What is extracted, and what of it is plugged in.

    Attributes:
      kinds: files of vectors.
      tasks: that the extraction models learn; credit_pay stands for the paper's cart.
      days: of the super-domain, the last ones. (Labels begin at the 36th of 60.)
    """

    kinds: tuple[str, ...] = ("user", "item", "user_category")
    tasks: tuple[str, ...] = ("click", "conversion", "credit_pay")
    days: int = _SUPER_DAYS

    @property
    def extraction(self) -> str:
        """Names the runs and folders; those with the same name differ in `kinds` at most."""
        return f"{'_'.join(self.tasks)}_{self.days}"


_PLUGGED_IN = {
    "keep": _Knowledge(),
    "keep-u": _Knowledge(kinds=("user",)),  # Table 3
    "keep-u-i": _Knowledge(kinds=("user", "item")),  # Table 3; Table 8's decomposition
    "keep-uc": _Knowledge(kinds=("user_category",)),  # Table 8's degeneration
    "keep-click": _Knowledge(tasks=("click",)),  # Table 4
    "keep-click-conversion": _Knowledge(tasks=("click", "conversion")),
    "keep-6-days": _Knowledge(days=6),  # Table 6: 3 days of labels to learn from, of 21
    "keep-12-days": _Knowledge(days=12),  # 9 days
}
"""`can` as the base is, with these vectors."""


def main(argv: list[str]) -> None:
    del argv
    output = pathlib.Path(_OUTPUT.value).absolute()
    own = _OWN_HISTORIES.value
    known = ["base", *_PLUGGED_IN] if own else [*_ROWS, *_PLUGGED_IN]
    wanted = _MODELS.value or known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise app.UsageError(f"--models={','.join(unknown)}: the rows are {', '.join(known)}")
    simulate(output / "simulated", num_users=_USERS.value, mean_events=_EVENTS.value)
    knowledge = _vectors(output, _Knowledge())
    run = _run(output, _downstream(knowledge, own), _days(output, _SUPER_DAYS))
    models = dict(_ROWS)
    for name in wanted:
        if name in _PLUGGED_IN:
            vectors = _vectors(output, _PLUGGED_IN[name])
            models[name] = f"model.architecture:can,{_OWN},knowledge.path:{vectors}"
    if own:  # all labels there are
        models = {name: changes.replace(f",{_OWN}", "") for name, changes in models.items()}
    _command(
        "compare",
        f"--run={run}",
        f"--models={','.join(f'{name}={models[name]}' for name in wanted)}",
        f"--seeds={','.join(_SEEDS.value)}",
        f"--output={output / ('page_own_histories' if own else 'page')}",
    )


def _vectors(output: pathlib.Path, wanted: _Knowledge) -> pathlib.Path:
    """A folder of these vectors, extracted unless they are there."""
    all_kinds = output / "extracted" / wanted.extraction / "1"
    for degenerate, kinds in ((False, ("user", "item")), (True, ("user_category",))):
        if not all((all_kinds / f"{kind}.parquet").exists() for kind in kinds):
            data = _days(output, _SUPER_DAYS - wanted.days, _SUPER_DAYS)
            run = _run(output, _extraction(wanted, degenerate), data)
            _command("extract", f"--output={run}", f"--to={all_kinds}")
    folder = output / "extracted" / wanted.extraction / "-".join(wanted.kinds)
    folder.mkdir(exist_ok=True)
    for kind in wanted.kinds:
        if not (folder / f"{kind}.parquet").exists():
            shutil.copy(all_kinds / f"{kind}.parquet", folder / ".copying")
            (folder / ".copying").rename(folder / f"{kind}.parquet")
    return folder


def _days(output: pathlib.Path, first: int, end: int | None = None) -> pathlib.Path:
    """A folder of the simulated events from a day on, and until one."""
    folder = output / f"days_{first}_{end or 'on'}"
    folder.mkdir(exist_ok=True)
    for path in sorted((output / "simulated").glob("*.parquet")):
        target = folder / path.name
        if not target.exists():
            table = pq.read_table(path)
            if path.name.startswith("events-"):
                day = pc.divide(pc.subtract(table["time_ms"], START_MS), _DAY_MS)
                wanted = pc.greater_equal(day, first)
                table = table.filter(pc.and_(wanted, pc.less(day, end)) if end else wanted)
            pq.write_table(table, folder / ".writing")
            (folder / ".writing").rename(target)
    return folder


def _extraction(wanted: _Knowledge, degenerate: bool) -> dict[str, Any]:
    """KEEP's concise model (§4.2.1): behaviours, item, shop, category; or the category alone."""
    kind = "categories" if degenerate else "items"
    spec = _spec(f"{kind}_{wanted.extraction}", _SUPER_TEST_FROM)
    read = {"event", "product", "category", "merchant", "click", "conversion"}
    offered = {"category"} if degenerate else {"product", "category", "merchant"}
    spec["channels"] = [
        c
        for c in spec["channels"]
        if (c["scope"] == "sequence" and c["name"] in read)
        or (c["scope"] == "candidate" and c["name"] in offered)
    ]
    spec["tasks"] = [t for t in spec["tasks"] if t["name"] in wanted.tasks]
    item = "category" if degenerate else "product"
    spec["knowledge"] = {"item": item, "category": "category"}
    spec["model"]["architecture"] = "din" if degenerate else "two_tower"
    spec["training"]["finetune"] |= {"epochs": 3, "pairwise_weight": _ALPHA}
    return spec


def _downstream(knowledge: pathlib.Path, own_histories: bool) -> dict[str, Any]:
    """Of which `compare` makes the rows. Items are what pre-training predicts."""
    spec = _spec("downstream_own_histories" if own_histories else "downstream", _TEST_FROM)
    pages = [f"a{page}.b{slot}" for page in _PAGES for slot in range(NUM_SLOTS)]
    if own_histories:
        spec["source"]["where"] = {"column": "spm", "values": pages, "of": "events"}
    else:
        spec["domain"] = {"channel": "spm", "values": pages}
    spec["channels"] = [
        c | {"mask_prediction": c["scope"] == "sequence" and c["name"] == "product"}
        for c in spec["channels"]
        if c["name"] != "conversion"
    ]
    spec["tasks"] = [t for t in spec["tasks"] if t["name"] == "click"]
    spec["knowledge"] = {"item": "product", "category": "category", "path": str(knowledge)}
    spec["model"]["architecture"] = "can"
    spec["training"]["finetune"] |= {"epochs": 4, "weight_decay": _DECAY}
    spec["evaluation"] = {"activity_edges": list(_OWN_EDGES if own_histories else _EDGES)}
    return spec


def _spec(name: str, test_from: int) -> dict[str, Any]:
    spec = simulator_spec()
    moment = datetime.datetime.fromtimestamp(_moment_ms(test_from) / 1000, datetime.timezone.utc)
    spec |= {"name": name, "split": {"by": "time", "at": moment.isoformat()}}
    for task in spec["tasks"]:
        del task["thresholds"]
    spec["model"] = {"hidden_dim": 32, "tower_dims": [64, 32]}
    # Not the simulator's, which may change: docs/keep.md has figures by these.
    rates = {"batch_size": 32, "learning_rate": 0.002, "table_learning_rate": 0.1}
    spec["training"] = {"pretrain": {"epochs": 0}, "finetune": rates}
    return spec


def _moment_ms(day: int) -> int:
    return START_MS + day * _DAY_MS


def _run(output: pathlib.Path, spec: dict[str, Any], data: pathlib.Path) -> pathlib.Path:
    folder = output / spec["name"]
    path = output / f"{spec['name']}.yaml"
    path.write_text(yaml.safe_dump(spec))
    _command("run", f"--spec={path}", f"--data={data}", f"--output={folder}")
    return folder


def _command(*arguments: str) -> None:
    print("tfx_pipeline", *arguments, flush=True)
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tfx_pipeline", *arguments], check=True)


if __name__ == "__main__":
    app.run(main)
