"""LabelCS: the share of each label among training targets, as everyone's answer."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from data.instances import build_instances
from modules.metrics.resampled import measure
from tests.data.small import event_table, small_spec, user_table
from tfx_pipeline.comparison.label_frequency import answers, frequencies


@pytest.fixture(scope="module")
def instances(tmp_path_factory):
    """Of 20 users with 4 events each: the folder, and all training labels by task."""
    spec, rng = small_spec(), np.random.default_rng(0)
    rows = [
        {
            "user_id": f"u{user}",
            "time_ms": 1000 * (t + 1),
            "click": str(int(rng.random() < 0.3)) if t else None,
            "stars": "abc"[rng.integers(3)],
            "spend": float(rng.normal()),
        }
        for user in range(20)
        for t in range(4)
    ]
    users = [{"user_id": f"u{user}", "level": ["tin", "gold"][user % 2]} for user in range(20)]
    table = build_instances(event_table(rows, spec), user_table(users, spec), spec)
    folder = tmp_path_factory.mktemp("instances")
    (folder / "Split-train").mkdir()
    with tf.io.TFRecordWriter(str(folder / "Split-train" / "0.gz"), "GZIP") as writer:
        for example in RecordBatchToExamplesEncoder().encode(table):
            writer.write(example)
    labels = {task.name: [] for task in spec.tasks}
    for row in table.to_pylist():
        for name, found in labels.items():
            of_task = np.array(row[f"label_{name}"], np.float64)
            found += of_task[(np.array(row["target_split"]) == 0) & ~np.isnan(of_task)].tolist()
    assert 0 < len(labels["vip"]) < 20 and len(labels["click"]) > 20
    return spec, folder, {name: np.array(found) for name, found in labels.items()}


def test_frequencies_are_of_training_labels(instances):
    spec, folder, labels = instances
    known = frequencies(folder, spec)
    for task in ("click", "vip"):
        share = labels[task].mean()
        np.testing.assert_allclose(known[task], [1 - share, share])
    np.testing.assert_allclose(known["stars"], [(labels["stars"] == c).mean() for c in range(3)])
    np.testing.assert_allclose(known["spend"], [labels["spend"].mean()], rtol=1e-5)


def test_everyone_gets_the_same_answer_which_ranks_nobody():
    spec = small_spec()
    known = {
        "click": np.array([0.75, 0.25]),
        "stars": np.array([0.5, 0.2, 0.3]),
        "spend": np.array([1.5]),
        "vip": np.array([0.4, 0.6]),
    }
    tasks = ["click"] * 4 + ["stars"] * 3 + ["spend", "vip"]
    labels = [0, 0, 0, 1, 2, 0, 1, 9.0, 1]
    asked = pa.table(
        {
            "user_id": [f"u{n % 2}" for n in range(9)],
            "task": tasks,
            "label": pa.array(labels, pa.float32()),
            "score": pa.array(np.linspace(0, 1, 9), pa.float32()),
        }
    )
    found = answers(asked, known, spec)
    assert found.drop(["score"]) == asked.drop(["score"])
    expected = [0.25] * 4 + [0.3, 0.5, 0.2] + [1.5, 0.6]
    np.testing.assert_allclose(found["score"], expected)
    click = found.slice(0, 4)
    metrics = measure(np.array([0, 1, 0, 1]), click["label"].to_numpy(), click["score"].to_numpy())
    assert metrics["auc"] == metrics["gauc"] == 0.5 and metrics["accuracy"] == 0.75
