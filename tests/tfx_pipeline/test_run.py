"""The whole pipeline through the command line: killed, resumed, repeated, refused."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data.simulator import simulate
from serving.client import Client, example
from serving.local import local_server
from tests.repo.source_tree import ROOT

pytestmark = pytest.mark.slow

USERS = 150
_DEADLINE = 600.0
_PHASE = {"epochs": 1, "batch_size": 32}
SPEC = {
    "name": "small",
    "source": {"format": "tabular", "path": "events-*.parquet", "users": "users.parquet"},
    "sequence": {"max_length": 16, "window": 64},
    "channels": [
        {"name": "product", "scope": "sequence", "kind": "id", "rows": 64, "top_k": 256, "dim": 8}
        | {"mask_prediction": True},
        {"name": "price", "scope": "sequence", "kind": "dense", "normalize": "log1p"},
        {"name": "product", "scope": "candidate", "kind": "id", "table": "product"},
        {"name": "age_band", "scope": "context", "kind": "category", "dim": 4},
    ],
    "tasks": [
        {"name": "click", "label": "click_label", "oracle": "click_oracle"},
        {"name": "spender", "per": "user", "label": "high_spender_label", "group_by": None},
    ],
    "model": {
        "hidden_dim": 16,
        "num_blocks": 1,
        "num_heads": 2,
        "num_experts": 2,
        "ffn_dim": 16,
        "pooling": "mean",
    },
    "training": {
        "pretrain": _PHASE | {"objective": "denoising_autoencoder"},
        "finetune": _PHASE | {"weighting": "gradnorm", "weight_decay": 1.0},
    },
}


class Run:
    """One output folder, and commands on it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.data = simulate(folder / "events", num_users=USERS, num_items=100)
        self.output = folder / "run"

    def start(self, spec: dict, log: pathlib.Path) -> subprocess.Popen:
        path = self.folder / "small.yaml"
        path.write_text(yaml.safe_dump(spec))
        command = [sys.executable, "-m", "tfx_pipeline", "run", f"--spec={path}"]
        command += [f"--data={self.data}", f"--output={self.output}"]
        with log.open("w") as file:
            return subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, spec: dict) -> tuple[int, str]:
        """Exit code and what the console said."""
        log = self.folder / "console.txt"
        code = self.start(spec, log).wait(_DEADLINE)
        return code, log.read_text()

    def versions(self) -> list[str]:
        return sorted(path.name for path in (self.output / "serving/small").glob("*"))


def _states(console: str) -> dict[str, str]:
    return dict(re.findall(r"^  (\w+) +(done|cached|FAILED) +[\d.]+ s$", console, re.MULTILINE))


def _wait_for(log: pathlib.Path, text: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + _DEADLINE
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("pipeline"))


def test_a_killed_run_resumes_from_the_last_finished_node(run):
    log = run.folder / "killed.txt"
    process = run.start(SPEC, log)
    _wait_for(log, "Pretrain ", process)
    os.killpg(process.pid, signal.SIGSTOP)  # It goes no further meanwhile.
    try:
        code, refused = run.finish(SPEC)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert code == 2 and "another run writes here; wait for it, or stop it" in refused
    assert process.wait() == -signal.SIGKILL
    assert _states(log.read_text())["Pretrain"] == "done"
    assert run.versions() == []

    code, console = run.finish(SPEC)
    assert code == 0, console
    states = _states(console)
    for node in ("SequenceExampleGen", "StatisticsGen", "Transform", "Pretrain"):
        assert states[node] == "cached"
    for node in ("Finetune", "Evaluator", "ServingCheck", "Pusher", "UserEmbeddings"):
        assert states[node] == "done"
    (version,) = run.versions()
    table = pq.read_table(run.output / "embeddings" / version)
    assert len(table) == len(set(table["user_id"].to_pylist())) == USERS
    assert re.search(r"^ ?click .*0\.\d{4}", console, re.MULTILINE)
    assert f"-m tfx_pipeline serve --output={run.output}" in console
    assert f"-m tfx_pipeline predict --output={run.output} -- --wait=60" in console
    report = (run.output / "report.html").read_text()
    assert "<svg" in report and "http://" not in report.replace("http://www.w3.org", "")


def test_a_thousand_candidates_of_one_user_use_the_same_signature(run):
    """The pushed model in the real server: each candidate scores as it does alone."""
    history = {
        "user_id": ["u"],
        "sequence_product": [3, 1, 4, 1, 5],
        "sequence_price": [9.0, 2.5, 6.0, None, 5.0],
        "context_age_band": ["25-34"],
    }
    products = [i % 90 for i in range(1000)]

    def request(candidates):
        return {"examples": [example(history | {"candidate_product": candidates})]}

    with local_server(str(run.output / "serving/small"), "small") as server:
        client = Client(server.target)
        many = client.predict("small", request(products))
        few = client.predict("small", request(products[:3]))
    assert many["click"].shape == (1, 1000) and many["spender"].shape == (1,)
    np.testing.assert_allclose(many["click"][0, :3], few["click"][0], atol=1e-6)
    np.testing.assert_allclose(many["click"][0, 90:180], many["click"][0, :90], atol=1e-6)
    assert len(set(many["click"][0, :90].tolist())) > 10
    np.testing.assert_allclose(many["spender"], few["spender"], atol=1e-6)


def test_an_unchanged_run_does_nothing_again(run):
    before = run.versions()
    code, console = run.finish(SPEC)
    assert code == 0, console
    computed = set(_states(console)) - {"Imports", "LatestAccepted", "LatestBlessed"}
    assert {_states(console)[node] for node in computed} == {"cached"}
    assert run.versions() == before


def test_a_model_under_its_threshold_is_not_pushed_and_the_exit_code_says_so(run):
    before = run.versions()
    strict = {**SPEC, "tasks": [{**SPEC["tasks"][0], "thresholds": {"min_auc": 0.999}}]}
    strict["tasks"].append(SPEC["tasks"][1])
    code, console = run.finish(strict)
    assert code == 1
    states = _states(console)
    assert (states["Finetune"], states["Evaluator"]) == ("cached", "done")  # nothing is retrained
    assert "Not blessed, so nothing is pushed:" in console
    assert re.search(r"^  click: auc .*0\.999", console, re.MULTILINE), console
    assert "Serve it" not in console
    assert run.versions() == before


def test_report_says_it_again(run):
    command = [sys.executable, "-m", "tfx_pipeline", "report", f"--output={run.output}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 1
    assert "Not blessed" in told.stdout and told.stderr == ""
