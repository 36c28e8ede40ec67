"""Processes that die and disks that are full, while a real cluster trains.

`benchmarks/training/faults.py` has every fault, and what it costs in AUC and time.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import time

import pytest

from benchmarks.training import injection
from benchmarks.training.disturbed import Training
from benchmarks.training.injection import Victim
from modules.training import finetune
from modules.training.incidents import Incidents
from tests.modules.transformed import Transformed, two_phase_spec

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
PHASE = {"batch_size": 2, "epochs": 3}
DIALS = {"report_every_steps": 1, "checkpoint": {"every_steps": 10}}
HYBRID = {"placement": "hybrid", "processes": {"ps": 2}, **DIALS}
PARAMETER_SERVER = {
    "placement": "parameter_server",
    "processes": {"worker": 1, "ps": 1},
    "steps_per_call": 2,
    **DIALS,
}
FULL_SECONDS = 8.0
PATIENCE_SECONDS = 300.0
CHIEF, LAST_PS = Victim("chief", 0), Victim("ps", 1)


def training_of(transformed: Transformed, folder: pathlib.Path, cluster: dict) -> Training:
    spec = two_phase_spec(training={"pretrain": {"epochs": 0}, "finetune": PHASE})
    small = spec.model.model_copy(update={"full_softmax_rows": 8})
    spec = spec.model_copy(update={"model": small})
    fn_args = transformed.arguments(finetune, spec, folder, None, cluster=cluster)
    return Training(vars(fn_args), folder)


def steps_of(folder: pathlib.Path) -> list[int]:
    records = map(json.loads, (folder / "run" / "history.jsonl").read_text().splitlines())
    return [record["step"] for record in records if "epoch_end" not in record]


def named(training: Training, name: str) -> list[dict]:
    return [event for event in training.events() if event["event"] == name]


def test_hybrid_restores_only_the_shard_that_was_lost_while_its_trainer_waits(
    transformed, tmp_path
):
    with training_of(transformed, tmp_path, HYBRID) as training:
        training.wait_for("checkpoint_saved")
        injection.kill(training, LAST_PS)
        training.wait(PATIENCE_SECONDS)
        assert {event["shard"] for event in named(training, "shard_lost")} == {1}
        assert [(e["shard"], e["restored"]) for e in named(training, "shard_back")] == [(1, True)]
        assert [event["role"] for event in named(training, "death")] == ["ps"]
        told = Incidents.of(training.events())
        assert (told.restarts, told.restored_shards, told.steps_repeated) == (1, 1, 0)
        assert told.seconds_lost > 0
    (trained,) = named(training, "trained")
    assert steps_of(tmp_path) == list(range(1, trained["step"] + 1))


def test_a_coordinator_that_dies_goes_on_from_the_checkpoint(transformed, tmp_path):
    with training_of(transformed, tmp_path, PARAMETER_SERVER) as training:
        training.wait_for("checkpoint_saved")
        injection.kill(training, CHIEF)
        training.wait(PATIENCE_SECONDS)
    (resumed,) = named(training, "resumed")
    first, again = named(training, "training")
    assert first["step"] == 0 and again["step"] == resumed["step"] >= 10
    (trained,) = named(training, "trained")
    steps = [0, *steps_of(tmp_path)]  # none twice, none left out
    assert steps[-1] == trained["step"]
    assert {later - step for step, later in itertools.pairwise(steps)} <= {1, 2}
    # Servers would hold the lost coordinator's variables beside the new one's.
    assert {event["role"] for event in named(training, "restart")} == {"chief", "worker", "ps"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_costs_checkpoints_and_nothing_else(transformed, tmp_path):
    with contextlib.ExitStack() as held:
        training = training_of(transformed, tmp_path, HYBRID)
        held.enter_context(injection.small_disk(training.state))
        held.enter_context(training)
        training.wait_for("checkpoint_saved")
        with injection.filled(training.state):
            time.sleep(FULL_SECONDS)
        training.wait(PATIENCE_SECONDS)
        failed = named(training, "checkpoint_failed")
        assert failed and all("No space left" in event["reason"] for event in failed)
        trained = named(training, "trained")[-1]
        assert steps_of(tmp_path) == list(range(1, trained["step"] + 1))
