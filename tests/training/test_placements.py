"""Every placement trains like one process does: step by step, in real clusters."""

from __future__ import annotations

import itertools
import json
import types

import numpy as np
import pytest

from modules.training import finetune
from modules.training.checkpoint import preemption
from modules.training.cluster.events import CLUSTER_EVENTS, TRAINING_EVENTS, read_events
from tests.modules.transformed import Transformed, two_phase_spec

pytestmark = pytest.mark.slow
LONG = pytest.mark.exhaustive
PHASE = {
    "batch_size": 16,
    "epochs": 2,
    "learning_rate": 3e-4,
    "table_learning_rate": 0.1,
    "weighting": "gradnorm",
}
ADAPTERS = {"tune": "adapters", "adapters": {"bottleneck_dim": 2}}
LARGE_FROM = 8
"""Rows; tables on either side of it are in the spec."""
CLUSTERS = {
    "single": {"threads": {"intra_op": 1, "inter_op": 2}},
    "mirrored": {"placement": "mirrored", "devices": 2},
    "multi_worker_mirrored": {"placement": "multi_worker_mirrored", "processes": {"worker": 1}},
    "parameter_server": {
        "placement": "parameter_server",
        "processes": {"worker": 1, "ps": 2},
        "steps_per_call": 1,
        "min_shard_bytes": 64,
    },
    "hybrid": {
        "placement": "hybrid",
        "processes": {"ps": 2},
        "devices": 2,
        "staleness": 0,
        "wire_dtype": "float32",
    },
}


@pytest.fixture(scope="module", autouse=True)
def unexported():
    """The export is one process's, however it was trained, and takes longer than training here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(finetune, "export", lambda *_: None)
        yield


def losses(
    transformed: Transformed,
    folder,
    cluster: dict,
    tuning: dict | None = None,
    tasks: list[dict] | None = None,
    **config: str,
) -> tuple[np.ndarray, list[dict]]:
    """Of every step of fine-tuning from scratch, without dropout; and each epoch's records."""
    training = {"pretrain": {"epochs": 0}, "finetune": PHASE | (tuning or {})}
    spec = two_phase_spec(training=training, **({"tasks": tasks} if tasks else {}))
    sizes = {"full_softmax_rows": LARGE_FROM, "dropout": 0.0}
    spec = spec.model_copy(update={"model": spec.model.model_copy(update=sizes)})
    cluster = cluster | {"report_every_steps": 1}
    transformed.train(finetune, spec, folder, None, cluster=cluster, **config)
    history = (folder / finetune.NAME / "run" / "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in history]
    steps = [r["loss"] for r in records if "epoch_end" not in r]
    return np.array(steps), [r for r in records if "epoch_end" in r]


@pytest.fixture(scope="module")
def alone(transformed, tmp_path_factory) -> types.SimpleNamespace:
    steps, epochs = losses(transformed, tmp_path_factory.mktemp("single"), {})
    assert len(steps) >= 6 and len(set(steps.round(3))) > 3
    return types.SimpleNamespace(steps=steps, epochs=epochs)


@pytest.mark.parametrize(
    "placement",
    [
        "multi_worker_mirrored",
        "hybrid",  # mirrors its dense weights
        *(pytest.param(p, marks=LONG) for p in ("single", "mirrored", "parameter_server")),
    ],
)
def test_losses_of_every_step_are_those_of_one_process(placement, transformed, alone, tmp_path):
    steps, epochs = losses(transformed, tmp_path, CLUSTERS[placement])
    # Also with thread pools of its own: they can't be those of this process.
    assert (tmp_path / finetune.NAME / "run" / CLUSTER_EVENTS).exists()
    np.testing.assert_allclose(steps, alone.steps, atol=1e-4)
    for epoch, expected in zip(epochs, alone.epochs, strict=True):
        assert epoch.keys() == expected.keys()
        for name in expected.keys() - {"phase"}:
            np.testing.assert_allclose(epoch[name], expected[name], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize(
    "placement",
    ["parameter_server", *(pytest.param(p, marks=LONG) for p in ("mirrored", "hybrid"))],
)
def test_what_is_frozen_is_frozen_everywhere(placement, transformed, frozen_alone, tmp_path):
    """Large tables too: were one of them trained, the losses would part."""
    steps, epochs = losses(transformed, tmp_path, CLUSTERS[placement], ADAPTERS)
    np.testing.assert_allclose(steps, frozen_alone.steps, atol=1e-4)
    assert [e["tuned_share"] for e in epochs] == [e["tuned_share"] for e in frozen_alone.epochs]


@LONG
@pytest.mark.parametrize("placement", ["mirrored", "parameter_server", "hybrid"])
def test_what_each_replica_draws_trains_everywhere(placement, transformed, tmp_path):
    """Masks and negatives are a replica's own, so losses aren't those of one process; they fall."""
    tuning = {"pretraining_weight": 0.5, "negatives": {"item": "item", "count": 3}, "epochs": 4}
    tasks = [
        {"name": "click", "label": "click", "loss": "bpr"},
        {"name": "vip", "per": "user", "label": "level", "positive": ["gold"]},
    ]
    steps, _ = losses(transformed, tmp_path, CLUSTERS[placement], tuning, tasks)
    assert np.isfinite(steps).all()
    assert steps[-3:].mean() < steps[:3].mean()


@pytest.fixture(scope="module")
def frozen_alone(transformed, tmp_path_factory) -> types.SimpleNamespace:
    steps, epochs = losses(transformed, tmp_path_factory.mktemp("frozen"), {}, ADAPTERS)
    assert all(0 < epoch["tuned_share"] < 0.9 for epoch in epochs)
    return types.SimpleNamespace(steps=steps, epochs=epochs)


def test_a_run_goes_on_under_another_placement(transformed, alone, tmp_path, monkeypatch):
    """Its rows and their optimizer's state with it; on parameter servers, as in one process."""
    state = str(tmp_path / "state")
    asked = itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr(preemption.StopRequest, "is_set", lambda _: next(asked) >= 3)
        with pytest.raises(KeyboardInterrupt):
            losses(transformed, tmp_path / "first", {}, state=state)
    cluster = CLUSTERS["parameter_server"]
    steps, _ = losses(transformed, tmp_path / "second", cluster, state=state)
    np.testing.assert_allclose(steps, alone.steps, atol=1e-4)
    events = read_events(tmp_path / "second" / finetune.NAME / "run" / TRAINING_EVENTS)
    (resumed,) = [event["step"] for event in events if event["event"] == "resumed"]
    assert 0 < resumed < len(steps)
