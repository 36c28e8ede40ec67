"""From a pushed model to tasks answered beside its own, through real files and a real server."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tf_keras as keras
import yaml

from data.added_tasks import OUTPUTS, AddedTasks, load_added_tasks, with_added
from data.spec import SpecError, parse_spec
from modules.models.task_bank import Given, TaskWeights, at_targets, scores
from modules.models.user_model import UserModel
from modules.preprocessing import table_rows
from modules.training import added_tasks
from modules.training.export import export, fingerprint
from serving.client import Client
from serving.local import local_server
from tests.data.small import EVENT_TYPES, USER_TYPES, raw_table
from tests.modules.transformed import raw_rows
from tests.serving.process import wait_until
from tfx_pipeline import __main__ as command_line


@pytest.fixture(scope="module")
def model(transformed):
    raw = transformed.spec.with_tasks("click").model_dump(mode="json")
    raw["model"] |= {"architecture": "bert", "added_tasks": True}  # the quickest to export
    spec = parse_spec(raw)
    keras.utils.set_random_seed(5)
    made = UserModel(spec, table_rows(spec, transformed.output))
    made(next(iter(transformed.batches("train"))))
    return made


@pytest.fixture(scope="module")
def run(model, transformed, tmp_path_factory):
    """A run's folder: its spec, its events and a pushed model."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "spec.json").write_text(model.spec.model_dump_json())
    events, users = raw_rows()
    (folder / "data").mkdir()
    pq.write_table(raw_table(events, EVENT_TYPES), folder / "data" / "events.parquet")
    pq.write_table(raw_table(users, USER_TYPES), folder / "data" / "users.parquet")
    (folder / "serving" / "small").mkdir(parents=True)
    export(model, transformed.output, str(folder / "serving" / "small" / "7"))
    return folder


@pytest.fixture(scope="module")
def loaded(run):
    return tf.saved_model.load(str(run / "serving" / "small" / "7"))


def test_the_contract_names_the_backbone_by_its_weights(run, loaded, tmp_path):
    pushed = run / "serving" / "small" / "7"
    backbone = added_tasks.backbone_of(str(pushed))
    contract = json.loads((pushed / "assets.extra" / "serving.json").read_text())
    assert contract["added_tasks"] == {
        "signature": "added_tasks",
        "backbone": backbone,
        "outputs": OUTPUTS,
    }
    with pytest.raises(ValueError, match="takes no added tasks"):
        added_tasks.backbone_of(str(tmp_path))
    weights = [tf.Variable(weight) for weight in loaded.weights]
    known = fingerprint(weights)
    assert fingerprint(map(tf.Variable, loaded.weights)) == known
    weights[-1].assign(weights[-1] + 1)
    assert fingerprint(weights) != known


def test_targets_are_read_with_what_they_see(model, loaded, transformed):
    """As training's own input has them; each target's numbers as one, whatever their order."""
    files = [file.replace("/transformed/", "/raw/") for file in transformed.fn_args.train_files]
    files = [file.replace("*", "0.gz") for file in files]
    files += [file.replace("Split-train", "Split-eval") for file in files]
    task = transformed.spec.task("click")
    rows = added_tasks.read_rows(loaded, files, [task])
    for split in ("train", "eval"):
        expected = []
        for batch in transformed.batches(split, batch_size=16):
            labelled = ~tf.math.is_nan(batch["label_click"])
            given = at_targets(model, batch)
            expected.append(
                _prints(*(value[labelled] for value in given), batch["label_click"][labelled])
            )
        read = rows.of("click", is_eval=split == "eval")
        found = np.sort(_prints(*read.given, read.labels["click"]))
        assert len(found) > 50
        np.testing.assert_allclose(found, np.sort(np.concatenate(expected)), atol=1e-3)


def _prints(layers, user, candidate, label):
    parts = [np.reshape(part, [len(label), -1]) for part in (layers, user, candidate, label)]
    joined = np.concatenate(parts, axis=1)
    return joined @ np.random.default_rng(0).normal(size=joined.shape[1])


WANTED = {
    "tasks": [
        {"name": "clicked", "label": "click"},
        {"name": "paid", "label": "spend", "type": "regression"},
        {"name": "gold", "per": "user", "label": "level", "positive": ["gold"]},
    ],
    "bottleneck_dim": 2,
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 0.02,
}


def test_added_and_served_beside_the_model_s_own_tasks(run, loaded, transformed, capfd, tmp_path):
    base = run / "serving" / "small"
    folder = base / "tasks" / added_tasks.backbone_of(str(base / "7"))
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(WANTED))
    targets = transformed.raw["candidate_price"].value_lengths().to_numpy()
    asked = np.array(transformed.examples, object)[targets > 1][:3]
    flags = ("--file_system_poll_wait_seconds=0.1",)
    with local_server(base, "small", flags=flags) as server, Client(server.target) as client:

        def answers(signature):
            return client.predict("small", {"examples": asked}, signature=signature)

        own = answers("serving_default")
        assert set(answers("added_tasks")) == {"user_id", "target_count"}
        arguments = [f"--output={run}", f"--tasks={tmp_path / 'tasks.yaml'}"]
        assert command_line.main(["add_tasks", *arguments]) == 0
        wait_until(lambda: "gold" in answers("added_tasks"))
        got = answers("added_tasks")
        for name, array in answers("serving_default").items():
            np.testing.assert_array_equal(array, own[name])  # nothing of the model has changed
        files = {name: np.load(folder / f"{name}.npz") for name in ("clicked", "paid", "gold")}
        files = {name: dict(file) for name, file in files.items()}
        shutil.rmtree(folder)
        wait_until(lambda: "gold" not in answers("added_tasks"))
    about = {name: json.loads(str(file.pop("task"))) for name, file in files.items()}
    weights = {
        name: np.stack([file[name] for file in files.values()]) for name in TaskWeights._fields
    }
    # TensorFlow Serving is given the weights.
    examples = _seeing_all(asked)
    raw = loaded.signatures["added_tasks"](examples=examples, **_tensors(weights))
    np.testing.assert_allclose(got["clicked"], raw["impression"][..., 0], atol=1e-5)
    np.testing.assert_allclose(got["paid"], raw["impression"][..., 1], atol=1e-5)
    np.testing.assert_allclose(got["gold"], raw["user"][:, 2], atol=1e-5)
    # What training had of a target that sees all is what serving answers from.
    given = loaded.signatures["added_task_inputs"](examples=examples)
    of_first = Given(*(given[name][:, 0] for name in Given._fields))
    for name, per in (("clicked", 0), ("paid", 0), ("gold", 1)):
        trained = TaskWeights(**{k: tf.constant(v[np.newaxis]) for k, v in files[name].items()})
        one = of_first._replace(candidate=of_first.candidate[:, tf.newaxis])
        logit = np.reshape(scores(one, trained)[per], [-1])
        expected = logit if name == "paid" else 1 / (1 + np.exp(-logit))
        np.testing.assert_allclose(np.reshape(got[name], [3, -1])[:, 0], expected, atol=1e-5)
    assert about["gold"]["per"] == "user" and about["clicked"]["eval"]["auc"] > 0
    assert about["clicked"]["tuned_share"] > about["gold"]["tuned_share"] > 0
    console = " ".join(capfd.readouterr().out.split())
    assert "│ gold │" in console and "3 tasks in" in console


def _seeing_all(serialized):
    """The same without `target_position`."""
    examples = [tf.train.Example.FromString(one) for one in serialized]
    for example in examples:
        del example.features.feature["target_position"]
    return tf.constant([example.SerializeToString() for example in examples])


def _tensors(arrays):
    return {name: tf.constant(array) for name, array in arrays.items()}


def test_added_tasks_are_checked_against_the_run(model, tmp_path):
    def refused(**task):
        given = AddedTasks(tasks=[{"name": "new", "label": "click"} | task])
        with pytest.raises(SpecError) as caught:
            with_added(model.spec, given)
        return str(caught.value)

    assert "'click' is a task of the run itself" in refused(name="click")
    for name in OUTPUTS.values():  # of the signature: the server could answer none of them
        assert f"{name!r} is a reserved name" in refused(name=name)
    assert "binary or regression" in refused(type="multiclass", classes=["a", "b"])
    assert "are trained pointwise: leave out 'loss'" in refused(loss="bpr")
    assert "'city', which the run's encoder reads" in refused(per="user", label="city")
    assert "'age', which the run's encoder reads" in refused(exclude=["age"])
    assert "candidate channel 'price' reads 'price'" in refused(label="price", type="regression")
    (tmp_path / "tasks.yaml").write_text("tasks: []\nbottleneck_dim: 300\nepoch: 3")
    said = r"not a file of added tasks:\n.*\n.*dim.* 256 \(got 300\)\n  epoch: unknown key"
    with pytest.raises(SpecError, match=said):
        load_added_tasks(tmp_path / "tasks.yaml")


def test_how_the_run_was_trained_isnt_asked_of_added_tasks(model):
    """Nor what its targets per impression are, of tasks per user."""

    def run_with(train_on, **finetune):
        raw = model.spec.model_dump(mode="json")
        raw["model"]["tower_dims"] = []
        raw["tasks"][0] |= {"loss": "bpr", "exclude": ["city"]}
        raw["training"]["finetune"] |= {"negatives": {"item": "item"}} | finetune
        raw["domain"] = {"channel": "item", "values": ["1", "2"], "train_on": train_on}
        return parse_spec(raw)

    click, gold = (
        task | {"exclude": ["city"]} for task in (WANTED["tasks"][0], WANTED["tasks"][2])
    )
    made = with_added(run_with("both", user_share=0.5), AddedTasks(tasks=[click, gold]))
    assert made.training.finetune.negatives is None and made.training.finetune.user_share == 1.0
    assert made.domain.values == ("1", "2")  # evaluation has its targets only
    run = run_with("domain", pretraining_weight=0.5)
    assert with_added(run, AddedTasks(tasks=[gold])).domain is None
    with pytest.raises(SpecError, match="learns from its domain alone, which added tasks per imp"):
        with_added(run, AddedTasks(tasks=[click, gold]))
