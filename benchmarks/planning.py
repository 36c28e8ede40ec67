"""Memory as planned against memory as measured, for four configurations of real processes.

    python -m benchmarks.planning [--only=single_table]

Each starts the processes of its placement, trains a few steps (the sparse tier: pulls and pushes)
and compares what /proc says is resident with what the planner said before.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

from data.spec import Spec, parse_spec  # noqa: E402
from modules.embeddings.tier.client import SparseTier  # noqa: E402
from modules.embeddings.tier.layout import TierTable  # noqa: E402
from modules.training.cluster.config import Cluster, parse_cluster  # noqa: E402
from modules.training.planning.baseline import (  # noqa: E402
    Baselines,
    Running,
    measure,
    request_of,
)
from modules.training.planning.blueprint import Blueprint, draw  # noqa: E402
from modules.training.planning.memory import processes  # noqa: E402
from modules.training.planning.size import BatchSize  # noqa: E402

_ONLY = flags.DEFINE_string("only", "", "One of the configurations; all unless given.")
_SIZE = BatchSize(instances=16, events=32, targets=4)
_TABLE, _DIM = "item", 16


class Compared(NamedTuple):
    process: str
    planned: int
    measured: int
    peak: int

    @property
    def error(self) -> float:
        return self.planned / self.measured - 1


def spec_of(**model: Any) -> Spec:
    """One id table beside a small model."""
    item = {"name": _TABLE, "kind": "id", "dtype": "int", "table": _TABLE}
    return parse_spec(
        {
            "name": "planned",
            "source": {"format": "tabular", "path": "*.parquet"},
            "sequence": {"max_length": 16, "window": 32},
            "channels": [
                {**item, "scope": "sequence", "rows": 10, "top_k": 0, "dim": _DIM},
                {**item, "scope": "candidate"},
            ],
            "tasks": [{"name": "click", "label": "clicked"}],
            "model": {"hidden_dim": 32, "num_blocks": 1, "num_heads": 2, "num_experts": 2, **model},
            "training": {"pretrain": {"epochs": 0}},
        }
    )


def compare(spec: Spec, rows: int, cluster: Cluster, baselines: Baselines) -> list[Compared]:
    """Plans, then trains, a spec with a table of `rows` rows on a cluster of this machine."""
    sizes = {_TABLE: rows}
    plan = draw(spec, "finetune", sizes, _SIZE)
    planned = {p.name: p.bytes for p in processes(plan, cluster, baselines)}
    with tempfile.TemporaryDirectory() as folder:
        if cluster.placement == "hybrid":
            with Running(cluster, folder, None) as running:
                running.resident("ps")
                _pull_and_push(running, plan, rows)
                return list(_compared(planned, running))
        request = request_of(spec, "finetune", sizes, _SIZE, cluster)
        with Running(cluster, folder, request) as running:
            running.seen()
            return list(_compared(planned, running))


def _compared(planned: dict[str, int], running: Running) -> Iterator[Compared]:
    for process in running.supervisor.processes():
        name = f"{process.role} {process.index}"
        if process.pid is not None:
            yield Compared(name, planned[name], process.rss_bytes, _peak(process.pid))


def _peak(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no VmHWM")


def _pull_and_push(running: Running, plan: Blueprint, rows: int) -> None:
    addresses = running.supervisor.cluster.addresses
    assert addresses is not None
    tier = SparseTier(
        addresses.ps,
        {_TABLE: TierTable(rows, _DIM)},
        optimizer="rowwise_adagrad",
        learning_rate=0.1,
        seed=0,
        trainer="benchmark",
        recover=lambda shard: None,
        rest_dtype=running.supervisor.cluster.rest_dtype,
    )
    rng = np.random.default_rng(0)
    try:
        for step in range(5):
            ids = {_TABLE: np.unique(rng.integers(3, rows, plan.distinct[_TABLE]))}
            pulled = tier.pull(ids)
            tier.push(ids, pulled, sequence=step)
    finally:
        tier.close()


CONFIGURATIONS: dict[str, Callable[[], tuple[Spec, int, Cluster]]] = {
    "single_table": lambda: (spec_of(), 20_000_000, Cluster()),
    "single_dense": lambda: (
        spec_of(hidden_dim=512, ffn_dim=2048, num_experts=16, num_blocks=2),
        50_000,
        Cluster(),
    ),
    "parameter_server": lambda: (
        spec_of(),
        20_000_000,
        parse_cluster({"placement": "parameter_server", "processes": {"worker": 1, "ps": 2}}),
    ),
    "hybrid": lambda: (
        spec_of(),
        40_000_000,
        parse_cluster(
            {"placement": "hybrid", "processes": {"ps": 2}, "rest_dtype": "bfloat16"},
        ),
    ),
}


def main(_: list[str]) -> None:
    names = [_ONLY.value] if _ONLY.value else list(CONFIGURATIONS)
    baselines = measure(spec_of(), "finetune", {_TABLE: 1_000_000})
    print(baselines)
    print(f"{'MiB':<18}{'process':<10}{'planned':>9}{'resident':>9}{'error':>8}{'peak':>9}")
    for name in names:
        for row in compare(*CONFIGURATIONS[name](), baselines):
            sizes = [f"{b / 2**20:>9,.0f}" for b in (row.planned, row.measured, row.peak)]
            print(
                f"{name:<18}{row.process:<10}{sizes[0]}{sizes[1]}{row.error:>+8.1%}{sizes[2]}",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
