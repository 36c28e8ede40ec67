"""A Trainer whose training is a TFJob's: handed over, trained by its pods' commands, finished.

The pods are processes of this machine (`pods.py`), the shared volume is a folder: no Kubernetes.
"""

from __future__ import annotations

import json
import pathlib
import re
import types

import numpy as np
import pytest
import tensorflow as tf
import yaml

from modules.training import finetune
from modules.training.cluster.config import ClusterError
from modules.training.cluster.events import TRAINING_EVENTS, read_events
from modules.training.cluster.server import TERMINATED
from modules.training.run import OnKubernetes
from tests.cluster.pods import Pods
from tests.modules.transformed import Transformed, two_phase_spec

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
PATIENCE_SECONDS = 600.0
PHASE = {"batch_size": 2, "epochs": 2}
GRACE_SECONDS = 20
"""Servers stay all of it when told to stop; in 10, trainers of a busy machine don't save."""
CLUSTERS = {
    "hybrid": {"placement": "hybrid", "processes": {"worker": 1, "ps": 1}},
    "mirrored": {"placement": "mirrored", "devices": 2},
}


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("volume")


def arguments(
    transformed: Transformed, volume: pathlib.Path, name: str, attempt: int
) -> types.SimpleNamespace:
    """A Trainer's; what it writes is in another folder each time it is executed."""
    spec = two_phase_spec(training={"pretrain": {"epochs": 0}, "finetune": PHASE})
    small = spec.model.model_copy(update={"full_softmax_rows": 8})
    cluster = CLUSTERS[name] | {
        "report_every_steps": 1,
        "checkpoint": {"every_steps": 8},
        "grace_seconds": GRACE_SECONDS,
        "kubernetes": {
            "name": "job",
            "image": "image",
            "volume": {"claim": "claim", "mount": str(volume)},
            "chief": {"cpu": "1"},
            "worker": {"cpu": "1"},
        },
    }
    return transformed.arguments(
        finetune,
        spec.model_copy(update={"model": small}),
        volume / name / f"execution-{attempt}",
        None,
        cluster=cluster,
        state=str(volume / name / "state"),
    )


def handed_over(fn_args: types.SimpleNamespace) -> pathlib.Path:
    """The manifest that a Trainer says is to be applied."""
    with pytest.raises(OnKubernetes) as said:
        finetune.run_fn(fn_args)
    return pathlib.Path(re.search(r"kubectl apply -f (\S+)\n", str(said.value))[1])


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_trainer_finishes_with_what_a_tfjob_trained(name, transformed, volume, tmp_path):
    manifest = handed_over(arguments(transformed, volume, name, 1))
    folder = manifest.parent
    assert handed_over(arguments(transformed, volume, name, 2)) == manifest  # not trained yet

    def drain_once(pods: Pods) -> None:
        log = folder / TRAINING_EVENTS
        if not pods.exit_codes and log.exists() and "checkpoint_saved" in log.read_text():
            pods.drain()

    pods = Pods(yaml.safe_load(manifest.read_text()), tmp_path)
    pods.run(PATIENCE_SECONDS, drain_once)
    # All were told at once, and the servers outlasted the trainers that saved.
    left = {"chief-0": [75], "worker-0": [75], "ps-0": [TERMINATED]}
    assert pods.exit_codes == {pod: left[pod] for pod in pods.processes}
    events = read_events(folder / TRAINING_EVENTS)
    (resumed,) = [event["step"] for event in events if event["event"] == "resumed"]
    (steps,) = [event["step"] for event in events if event["event"] == "trained"]
    assert 8 <= resumed < steps

    fn_args = arguments(transformed, volume, name, 3)
    finetune.run_fn(fn_args)
    assert not folder.exists()
    history = pathlib.Path(fn_args.model_run_dir, "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in history]
    assert records[-1]["step"] == steps and records[-1]["epoch_end"]
    assert np.isfinite([record["loss"] for record in records]).all()
    served = tf.saved_model.load(fn_args.serving_model_dir).signatures["serving_default"]
    answers = served(tf.constant(transformed.examples[:2]))
    assert np.isfinite(answers["click"].numpy()).all()


def test_a_state_that_pods_do_not_see_is_refused(transformed, volume, tmp_path):
    fn_args = arguments(transformed, volume, "hybrid", 1)
    fn_args.custom_config["state"] = str(tmp_path)
    with pytest.raises(ClusterError, match=f"below {volume}/, not at {tmp_path}"):
        finetune.run_fn(fn_args)
