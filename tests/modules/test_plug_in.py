"""KEEP's plug-in: knowledge enters any model without changing it, in training and when served."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import SpecError
from modules.embeddings.knowledge import NOTHING, KnowledgeTable, keys_of, pair_keys, read
from modules.features import DOMAIN, as_ragged, pad
from modules.layers.plug_in import PlugIn
from modules.models.knowledge import decomposed
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.preprocessing import table_rows
from modules.training.checkpoint import dense
from modules.training.export import export
from modules.training.saving import trained_objects
from tests.data.small import channels_named
from tests.modules.conftest import (
    CASES,
    ROWS,
    make_spec,
    random_instances,
    with_architecture,
)
from tests.modules.fitting import fit_batch
from tests.modules.transformed import NUM_USERS, Transformed, two_phase_spec

EVENTS, TARGETS = [5, 0, 20, 9], [3, 2, 0, 6]


def write(path, vectors, **ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = pa.array(np.asarray(vectors, np.float32).ravel())
    columns = {name: pa.array(values) for name, values in ids.items()}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, np.shape(vectors)[1])
    pq.write_table(pa.table(columns), path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Vectors of users 0…99, items 0…39 and every pair of 100 users and 3 categories."""
    folder = tmp_path_factory.mktemp("knowledge")
    rng = np.random.default_rng(0)
    users, categories = [str(u) for u in range(100)], ["a", "b", "c"]
    write(folder / "users.parquet", rng.normal(size=(100, 6)), user_id=users)
    write(folder / "items.parquet", rng.normal(size=(40, 6)), item_id=list(map(str, range(40))))
    pairs = list(itertools.product(users, categories))
    write(
        folder / "pairs.parquet",
        rng.normal(size=(300, 5)),
        user_id=[u for u, _ in pairs],
        category=[c for _, c in pairs],
    )
    return folder


def with_keys(features, users, num_targets):
    """A batch's keys as Transform makes them."""
    items = keys_of(tf.range(sum(num_targets), dtype=tf.int64) % 50)
    categories = keys_of(tf.constant((["a", "b", "", "d"] * 100)[: sum(num_targets)]))
    lengths = np.array(num_targets)
    return features | {
        "knowledge_user": tf.RaggedTensor.from_row_lengths(
            keys_of(tf.constant(users)), [1] * len(users)
        ),
        "knowledge_item": tf.RaggedTensor.from_row_lengths(items, lengths),
        "knowledge_category": tf.RaggedTensor.from_row_lengths(categories, lengths),
    }


def test_the_plug_in_is_equation_5():
    rng = np.random.default_rng(1)
    h, knowledge = rng.normal(size=(3, 4)), rng.normal(size=(3, 7))
    h, knowledge = h.astype("float32"), knowledge.astype("float32")
    layer = PlugIn()
    np.testing.assert_array_equal(layer(h, knowledge), h)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    kernel, bias, out = (w.numpy() for w in layer.weights)
    expected = h + np.maximum(knowledge @ kernel + bias, 0) @ out
    np.testing.assert_allclose(layer(h, knowledge), expected, rtol=1e-5, atol=1e-5)


def test_decomposition_and_degeneration_are_equation_6():
    rng = np.random.default_rng(2)
    user, item, pair = (rng.normal(size=(4, d)).astype("float32") for d in (3, 3, 2))
    expected = np.concatenate([user, item, user * item, pair], -1)
    whole = {"user": user, "item": item, "user_category": pair}
    whole = {kind: tf.constant(value) for kind, value in whole.items()}
    np.testing.assert_array_equal(decomposed(whole), expected)
    np.testing.assert_array_equal(decomposed({"user": whole["user"]}), user)


def test_vectors_are_found_by_id_and_what_is_unknown_is_zero(exported):
    tables = {kind: KnowledgeTable(*rest, name=kind) for kind, rest in read(str(exported)).items()}
    stored = pq.read_table(exported / "pairs.parquet")
    vectors = np.stack(stored["embedding"].to_pylist())
    vectors = (vectors / np.sqrt(np.mean(vectors**2))).astype("float32")
    users = keys_of(tf.constant([["0", "99"], ["7", "nobody"]]))
    categories = keys_of(tf.constant([["c", "a"], ["", "a"]]))
    found = tables["user_category"](pair_keys(users, categories)).numpy()
    np.testing.assert_allclose(found[0], vectors[[2, 297]], rtol=1e-5)
    np.testing.assert_array_equal(found[1], 0)
    assert tables["item"](keys_of(tf.constant([39]))).numpy().any(), "numbers are their text"
    assert not tables["item"](keys_of(tf.constant([-1, 40]))).numpy().any()
    assert (keys_of(tf.constant(["", "x"])).numpy() == NOTHING).tolist() == [True, False]


def test_bad_exports_are_named(tmp_path):
    with pytest.raises(ValueError, match="no \\*.parquet file"):
        read(str(tmp_path))
    write(tmp_path / "one.parquet", [[1.0], [2.0]], user_id=["a", "a"])
    with pytest.raises(ValueError, match="a user comes twice"):
        read(str(tmp_path))
    write(tmp_path / "one.parquet", [[1.0], [np.nan]], user_id=["a", "b"])
    with pytest.raises(ValueError, match="one.parquet: an embedding isn't finite"):
        read(str(tmp_path))
    write(tmp_path / "one.parquet", [[1.0]], shop_id=["a"])
    with pytest.raises(ValueError, match="one.parquet: needs embedding with user_id"):
        read(str(tmp_path))
    with pytest.raises(SpecError, match="category 'tags' isn't a single-valued"):
        make_spec(knowledge={"item": "item", "category": "tags"})


@pytest.mark.parametrize("case", CASES)
def test_an_old_checkpoint_loads_and_answers_stay_bit_for_bit(case, exported, tmp_path):
    """And from there on the knowledge makes a difference: to targets, and to tasks per user."""
    architecture, targets = case
    keras.utils.set_random_seed(1)
    base = make_spec(sequence={"max_length": 8, "window": 24, "targets": targets})
    base = with_architecture(base, architecture)
    knowledge = {"item": "item", "path": str(exported)}
    plugged = base.model_copy(update={"knowledge": make_spec(knowledge=knowledge).knowledge})
    features = with_keys(
        random_instances(base, EVENTS, TARGETS), ["0", "1", "nobody", "99"], TARGETS
    )
    old, new = UserModel(base, ROWS), UserModel(plugged, ROWS)
    before, after = (pad(as_ragged(features, spec), spec) for spec in (base, plugged))
    expected = old(before)[0]
    new(after)
    dense.write(str(tmp_path / "dense"), dense.dense_snapshot(trained_objects(old)))
    dense.restore(str(tmp_path / "dense"), trained_objects(new), without=new.plug_in.variables)
    for answers, wanted in ((new(after)[0], expected), (new.serve(after), old.serve(before))):
        for task, logits in wanted.items():
            np.testing.assert_array_equal(answers[task].numpy(), logits.numpy())
    for weight in new.plug_in.trainable_variables:
        weight.assign(tf.random.normal(weight.shape))
    changed = new.serve(after)
    real = after["target_mask"].numpy()
    assert (changed["click"].numpy() != old.serve(before)["click"].numpy())[real].any()
    assert changed["adult"].numpy()[0] != old.serve(before)["adult"].numpy()[0]


def test_learns_what_only_the_knowledge_tells(tmp_path):
    """Label = a bit of the user that no feature shows; judged on users not trained on."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2, 240)
    vectors = rng.normal(size=(240, 4))
    vectors[:, 2] = 2.0 * bits - 1
    write(tmp_path / "k" / "users.parquet", vectors, user_id=[str(u) for u in range(240)])
    tasks = [{"name": "click", "label": "clicked"}]
    accuracy = {}
    for path in (str(tmp_path / "k"), ""):
        spec = make_spec(tasks=tasks, knowledge={"item": "item", "path": path})
        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"architecture": "din", "dropout": 0.0})}
        )
        features = with_keys(
            random_instances(spec, [4] * 240, [1] * 240), [str(u) for u in range(240)], [1] * 240
        )
        features["label_click"] = tf.RaggedTensor.from_row_lengths(
            bits.astype(np.float32), [1] * 240
        )
        batch = pad(as_ragged(features, spec), spec)
        trained, held_out = ({n: v[half] for n, v in batch.items()} for half in HALVES)
        keras.utils.set_random_seed(4)
        model = UserModel(spec, ROWS)
        model(trained)
        frozen = {v.name: v.numpy() for v in model.non_trainable_variables}
        phase = spec.training.finetune.model_copy(update={"epochs": 40, "learning_rate": 1e-2})
        loss = lambda b, _: multi_task_loss(model, b)  # noqa: B023, E731
        fit_batch(model, loss, trained, phase, str(tmp_path / (path and "with") / "history"))
        for variable in model.non_trainable_variables:
            np.testing.assert_array_equal(variable, frozen[variable.name])
        right = (model.serve(held_out)["click"].numpy()[:, 0] > 0) == bits[HALVES[1]]
        accuracy[bool(path)] = right.mean()
    assert accuracy[True] > 0.95 and accuracy[False] < 0.65


HALVES = (slice(0, 180), slice(180, 240))


def test_knowledge_goes_through_transform_and_into_the_export(tmp_path):
    """With it a `domain`; KEEP-C, so that a model without a user split is exported too."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "k"
    ids = [f"u{user}" for user in range(NUM_USERS)]
    write(folder / "users.parquet", rng.normal(size=(NUM_USERS, 4)), user_id=ids)
    write(folder / "items.parquet", rng.normal(size=(50, 4)), item_id=list(map(str, range(50))))
    spec = two_phase_spec(
        channels=channels_named("item", "click", "price", "age", "city"),
        knowledge={"item": "item", "path": str(folder)},
        domain={"channel": "item", "values": ["1", "2"]},
        model={"architecture": "keep_c", "hidden_dim": 16},
        training={"pretrain": {"epochs": 0}},
    )
    transformed = Transformed(tmp_path / "data", spec)
    (batch,) = transformed.batches("train", batch_size=256)
    of_domain, is_eval = 0, []
    for row in transformed.raw.to_pylist():
        split, per_user = np.array(row["target_split"]), np.array(row["target_per_user"])
        inside = np.isin(row["candidate_item"], (1, 2))
        of_domain += np.sum(inside & (split == 0))
        is_eval += list(inside[(split == 1) & (per_user == 0)])
    assert 0 < np.sum(batch[DOMAIN]) == of_domain < np.sum(batch["target_mask"])
    assert len(is_eval) and all(is_eval)  # no other impression is judged
    keras.utils.set_random_seed(6)
    model = UserModel(spec, table_rows(spec, transformed.output))
    (batch,) = transformed.batches("eval", batch_size=256)
    model(batch)
    for weight in model.plug_in.trainable_variables:
        weight.assign(tf.random.normal(weight.shape))
    export(model, transformed.output, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    assert set(loaded.signatures) == {"serving_default", "embed", "predict"}
    expected = tf.sigmoid(model(batch)[0]["click"]).numpy()[batch["target_mask"].numpy()]
    examples = np.array(transformed.examples, object)[transformed.is_eval]
    lengths = [row["sequence_length"][0] for row in transformed.raw.to_pylist()]
    # The reader sorts by length; the sort is stable, so this is its order.
    order = np.argsort(np.array(lengths)[transformed.is_eval], kind="stable")
    serve = loaded.signatures["serving_default"]
    answers = serve(examples=tf.constant(examples[order]))
    real = tf.sequence_mask(answers["target_count"], answers["click"].shape[1]).numpy()
    np.testing.assert_allclose(answers["click"].numpy()[real], expected, atol=1e-5)

    longest = np.flatnonzero(real[:, 0])[-1]
    row = tf.train.Example.FromString(examples[order[longest]])
    known = serve(examples=tf.constant([row.SerializeToString()]))["click"].numpy()
    row.features.feature["user_id"].bytes_list.value[0] = b"a stranger"
    unknown = serve(examples=tf.constant([row.SerializeToString()]))["click"].numpy()
    assert np.abs(known - unknown).max() > 1e-4
