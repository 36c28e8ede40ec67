"""LabelCS: the share of each label among training targets, as everyone's answer."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from data.instances import build_instances
from modules.metrics.resampled import measure
from tests.data.small import CHANNELS, event_table, small_spec, user_table
from tfx_pipeline.comparison import predictions
from tfx_pipeline.comparison.finished_run import FinishedRun
from tfx_pipeline.comparison.label_frequency import NAME, answers, frequencies
from tfx_pipeline.comparison.page import page_of
from tfx_pipeline.comparison.trials import Outcome, Trial

PLACE = {"name": "place", "scope": "candidate", "kind": "category"}


@pytest.fixture(scope="module")
def instances(tmp_path_factory):
    """Of 20 users with 4 events each: the folder, all training labels by task, and of clicks
    (item, place, label)."""
    spec, rng = small_spec(channels=[*CHANNELS, PLACE]), np.random.default_rng(0)
    rows = [
        {
            "user_id": f"u{user}",
            "time_ms": 1000 * (t + 1),
            "item": int(rng.integers(6)),
            "place": f"p{t % 2}",
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
    labels, clicks = {task.name: [] for task in spec.tasks}, []
    for row in table.to_pylist():
        for name, found in labels.items():
            of_task = np.array(row[f"label_{name}"], np.float64)
            counted = (np.array(row["target_split"]) == 0) & ~np.isnan(of_task)
            found += of_task[counted].tolist()
            if name == "click":
                offered = {c: np.array(row[f"candidate_{c}"])[counted] for c in ("item", "place")}
                clicks += zip(*offered.values(), of_task[counted], strict=True)
    assert 0 < len(labels["vip"]) < 20 and len(labels["click"]) > 20
    return spec, folder, {name: np.array(found) for name, found in labels.items()}, clicks


def test_frequencies_are_of_training_labels(instances):
    spec, folder, labels, _ = instances
    known = frequencies(folder, spec)
    for task in ("click", "vip"):
        share = labels[task].mean()
        np.testing.assert_allclose(known[task], [1 - share, share])
    np.testing.assert_allclose(known["stars"], [(labels["stars"] == c).mean() for c in range(3)])
    np.testing.assert_allclose(known["spend"], [labels["spend"].mean()], rtol=1e-5)


@pytest.mark.parametrize(
    ("channel", "place", "values"), [("item", 0, {1: "1", 4: "4"}), ("place", 1, {b"p1": "p1"})]
)
def test_of_a_domain_its_own_labels_are_counted_and_all_of_users(instances, channel, place, values):
    _, folder, labels, clicks = instances
    domain = {"channel": channel, "values": list(values.values())}
    known = frequencies(folder, small_spec(channels=[*CHANNELS, PLACE], domain=domain))
    inside = np.array([label for *offered, label in clicks if offered[place] in values])
    assert abs(inside.mean() - labels["click"].mean()) > 0.02
    np.testing.assert_allclose(known["click"][1], inside.mean())
    np.testing.assert_allclose(known["vip"][1], labels["vip"].mean())


def test_a_task_without_labels_to_count_is_left_out(instances):
    _, folder, *_ = instances
    known = frequencies(folder, small_spec(domain={"channel": "item", "values": ["99"]}))
    assert known.keys() == {"vip"}


def test_the_page_has_its_row_of_all_tasks_that_any_model_has(instances, tmp_path):
    """`one` has click and vip, `other` stars and spend."""
    spec, folder, labels, _ = instances
    rows = {"click": [0.0, 1, 0], "vip": [1.0, 0], "stars": [2.0], "spend": [1.0, 2]}
    every = []
    for model, names in (("one", ["click", "vip"]), ("other", ["stars", "spend"])):
        trial = Trial(model, 0, spec.with_tasks(*names), tmp_path / model, None)
        trial.folder.mkdir()
        of_rows = [(name, label) for name in names for label in rows[name]]
        columns = {
            "user_id": [f"u{n}" for n in range(len(of_rows))],
            "activity": pa.array([1] * len(of_rows), pa.int64()),
            "task": [name for name, _ in of_rows],
            "label": pa.array([label for _, label in of_rows], pa.float32()),
            "score": pa.array([0.5] * len(of_rows), pa.float32()),
        }
        predictions.write(pa.table(columns), trial.folder / "predictions.parquet")
        outcome = Outcome({"finetune": 1}, 1.0, 0.1, 3, 2, 1, 1, "c0ffee", "2 cores", "today")
        (trial.folder / "outcome.json").write_text(json.dumps(dataclasses.asdict(outcome)))
        every.append(trial)
    run = FinishedRun(spec, folder, folder, folder)
    tables = {table.title: table for table in page_of(every, [], "one", run, "it").tables}
    (row,) = [r for r in tables["Accuracy"].rows if r[0].text == NAME]
    majority = {task: labels[task].mean() >= 0.5 for task in ("click", "vip")}
    expected = [np.mean(np.equal(rows[task], majority[task])) for task in ("click", "vip")]
    assert [cell.text for cell in row[1:3]] == [f"{share:.4f}" for share in expected]
    (row,) = [r for r in tables["Other tasks"].rows if r[0].text == NAME]
    squared = np.mean((labels["spend"].mean() - rows["spend"]) ** 2)
    nats = -np.log((labels["stars"] == 2).mean())
    assert [cell.text for cell in row[1:]] == [f"{nats:.4f}", f"{squared:.4f}"]


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
