"""Trials in processes of their own: real ones, tiny, some of them killed."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import psutil
import pytest
import rich.console

from modules.training.cluster.events import TRAINING_EVENTS, read_events
from tests.modules.transformed import two_phase_spec
from tests.repo.source_tree import ROOT
from tfx_pipeline.comparison import side_by_side, trials
from tfx_pipeline.comparison.finished_run import FinishedRun
from tfx_pipeline.comparison.variants import parse_variants
from tfx_pipeline.progress import Lines

pytestmark = pytest.mark.slow

BASE = two_phase_spec()
LONG = pytest.mark.exhaustive
MODELS = "one=model.architecture:bert,two=model.architecture:bert,model.tower_dims:[4]"


@pytest.fixture(scope="module")
def run(transformed) -> FinishedRun:
    folder = transformed.folder
    return FinishedRun(BASE, folder / "raw", folder / "transformed", folder / "graph")


def planned(run, folder, epochs=1):
    budget = {"pretrain": epochs, "finetune": 1}
    return trials.plan(parse_variants(MODELS, BASE, budget, lambda _: True), [0], run, folder)


def carry_out(every, run, folder):
    """Returns what the console showed."""
    shown = io.StringIO()
    with Lines(rich.console.Console(file=shown, width=200)) as lines:
        side_by_side.carry_out(every, run, 2, folder / "log.txt", lines)
    return shown.getvalue()


def trainings(folder: pathlib.Path) -> int:
    """How often a training was begun there."""
    return sum(event["event"] == "training" for event in read_events(folder / TRAINING_EVENTS))


@LONG
def test_a_killed_trial_is_named_and_the_same_call_goes_on(run, tmp_path):
    every = planned(run, tmp_path)
    shared = every[0].pretraining
    assert shared == every[1].pretraining

    class Killing(Lines):
        """Kills the first trial's process when it says that it trains."""

        def open(self, name):
            line = super().open(name)
            if name.startswith("1 of 2"):
                line.progress = self.kill
            return line

        def kill(self, message, fraction):
            if fraction is not None:  # it has read its input
                for child in multiprocessing.active_children():  # one: the second waits for it
                    child.kill()

    with (
        Killing(rich.console.Console(file=io.StringIO())) as lines,
        pytest.raises(side_by_side.TrialError, match="^one, seed 0: killed by signal 9"),
    ):
        side_by_side.carry_out(every, run, 2, tmp_path / "log.txt", lines)
    assert not any(trial.finished for trial in every)
    shown = carry_out(every, run, tmp_path)
    assert all(trial.finished for trial in every)
    assert shown.count("done") == 2 and "2 of 2: two, seed 0" in shown
    assert trainings(shared / "pretrain") == 2  # the killed one, and one for both
    assert {trials.outcome_of(trial).threads for trial in every} == {1}
    assert carry_out(every, run, tmp_path) == ""


def test_an_error_names_the_trial_and_says_the_reason(run, tmp_path):
    gone = dataclasses.replace(run, transformed=tmp_path / "gone")
    with pytest.raises(side_by_side.TrialError, match=r"^one, seed 0: .*gone/Split-train"):
        carry_out(planned(run, tmp_path), gone, tmp_path)
    assert "Traceback" in (tmp_path / "log.txt").read_text()


_ENDLESS = """
import pathlib, pickle, sys
import rich.console
from tfx_pipeline import environment
environment.prepare()
from tfx_pipeline.comparison import side_by_side
from tfx_pipeline.progress import Lines

if __name__ == "__main__":
    every, run = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    with Lines(rich.console.Console()) as lines:
        side_by_side.carry_out(every, run, 2, pathlib.Path(sys.argv[2]), lines)
"""


@pytest.mark.parametrize(
    "by", [signal.SIGTERM, *(pytest.param(s, marks=LONG) for s in (signal.SIGKILL, signal.SIGINT))]
)
def test_trials_end_with_who_started_them(by, run, tmp_path):
    """At once, or a second call would train in the same folder beside them; asked to, they save."""
    every = planned(run, tmp_path, epochs=100_000)
    (tmp_path / "asked").write_bytes(pickle.dumps((every, run)))
    (tmp_path / "endless.py").write_text(_ENDLESS)
    command = [sys.executable, str(tmp_path / "endless.py"), str(tmp_path / "asked")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "shown.txt").open("w") as shown:
        started = subprocess.Popen(
            [*command, str(tmp_path / "log.txt")], env=environment, stdout=shown, stderr=shown
        )
    children = _until(lambda: _training(started, every[0].pretraining / "cpu.json"))
    started.send_signal(by)
    gone, alive = psutil.wait_procs(children, timeout=5 if by == signal.SIGKILL else 60)
    assert gone and not alive
    assert started.wait(60) != 0
    saved = list(every[0].pretraining.rglob("checkpoints/*"))
    assert bool(saved) == (by != signal.SIGKILL)


def _training(started: subprocess.Popen, meter: pathlib.Path) -> list[psutil.Process]:
    """Its children, once one trains."""
    assert started.poll() is None
    return psutil.Process(started.pid).children(recursive=True) if meter.exists() else []


def _until(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("nothing trained")
