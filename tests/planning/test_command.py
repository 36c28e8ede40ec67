"""`python -m tfx_pipeline plan`."""

import json
import os
import subprocess
import sys

import pytest

from tests.repo.source_tree import ROOT


def _plan(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfx_pipeline", "plan", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows=product"], "--rows=product: table=number"),
        (["--memory=lots"], "--memory=lots: a size such as 24GiB"),
        (["--cluster=nowhere.yaml"], "nowhere.yaml: no such cluster"),
        (["--spec=nope"], "nope: no such spec"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, said):
    asked = _plan(*arguments)
    assert asked.returncode == 2
    (message,) = asked.stderr.strip().splitlines()
    assert message.startswith("error: ") and said in message


@pytest.mark.slow
def test_a_billion_ids_are_planned_on_this_machine():
    asked = _plan(
        "--spec=deploy/plans/billion_ids.yaml",
        "--cluster=deploy/clusters/local_hybrid.yaml",
        "--memory=4GiB",
        "--json",
    )
    assert asked.returncode == 0, asked.stderr
    plan = json.loads(asked.stdout)
    parameters = plan["parameters"]
    assert parameters["total"] > 16 * 10**9
    assert parameters["active"] < parameters["dense"]
    needed = {p["process"]: p["bytes"] for p in plan["memory"]}
    assert needed["ps 0"] > 10**9 // 2 * (16 * 4 + 4 + 1)
    tier = next(fit for fit in plan["fits"] if fit["placement"] == "hybrid")
    assert tier["ps"] * 4 * 2**30 > 10**9 * (16 * 4 + 4 + 1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_pipe_cuts_no_number():
    asked = _plan("--spec=deploy/plans/billion_ids.yaml", "--memory=4GiB")
    assert asked.returncode == 0, asked.stderr
    assert "1,000,000,003" in asked.stdout and "16,000,000,048" in asked.stdout
