"""Raw instances through real Transform: values against NumPy, and no training/serving skew."""

from __future__ import annotations

import collections
import itertools
import json
import pathlib
from concurrent import futures

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.core.protobuf import saved_model_pb2

from data.spec import parse_spec
from modules.embeddings.local_tables import LocalTables
from modules.embeddings.table import MISSING, NUM_RESERVED
from modules.models.user_model import UserModel
from modules.preprocessing import table_rows
from modules.training import files, finetune, pretrain
from modules.training.export import export
from modules.training.input.file_order import file_order_batches
from modules.training.input.localize import large_tables
from modules.training.placements.synchronous import Synchronous
from modules.training.saving import Saving, load_into
from modules.training.step import Step
from modules.training.warm_start import warm_start
from serving.server.batching import Parameters
from serving.server.servable import Options, Servable
from tests.modules.transformed import Transformed, raw_rows, two_phase_spec


@pytest.fixture(scope="module")
def model(transformed) -> UserModel:
    keras.utils.set_random_seed(5)
    model = UserModel(transformed.spec, table_rows(transformed.spec, transformed.output))
    model(next(iter(transformed.batches("train"))))
    return model


@pytest.fixture(scope="module")
def exported(transformed, model, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    export(model, transformed.output, str(folder))
    return folder


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(str(exported)).signatures


def _training_values(transformed, name):
    """Flat, present values of a sequence feature's training events, from the raw instances."""
    return [
        value
        for row in transformed.raw.to_pylist()
        for value in row[name][: row["train_length"][0]]
    ]


def test_dense_channels_are_scaled_by_training_events_only(transformed):
    raw = np.array(_training_values(transformed, "sequence_price"))
    seen = raw[~np.isnan(raw)]
    expected = np.sort((seen - seen.mean()) / seen.std())
    got = np.concatenate(
        [
            b["sequence_price"].numpy()[b["sequence_mask"]]
            for b in transformed.batches("train", min_targets=0)
        ]
    )
    np.testing.assert_allclose(np.sort(got[~np.isnan(got)]), expected, atol=1e-4)
    assert np.isnan(got).sum() == np.isnan(raw).sum() > 0


def test_every_way_to_normalise_in_every_scope(tmp_path):
    """Against NumPy; with a constant, what is never there, and a mean far above its deviation."""
    dense = [
        {"name": "price", "normalize": "log1p"},
        {"name": "gap", "column": "$interval"},
        {"name": "constant", "column": "spend"},
        {"name": "never", "column": "click_p"},
        {"name": "day", "column": "item"},
        {"name": "raw", "column": "price", "normalize": "none"},
    ]
    channels = [{"name": "shop", "scope": "sequence", "kind": "id", "dtype": "string", "top_k": 0}]
    channels[0] |= {"rows": 8}
    for scope, named in (
        ("sequence", dense),
        ("candidate", dense[::-1]),
        ("context", [{"name": "age"}, {"name": "rank", "column": "age", "normalize": "bucketize"}]),
    ):
        channels += [c | {"scope": scope, "kind": "dense"} for c in named]
    events, users = raw_rows()
    for event in events:
        day = None if event["item"] is None else 19_000 + event["item"] % 5
        event |= {"spend": 0.7, "click_p": None, "item": day}
    spec = two_phase_spec(channels=channels, tasks=[{"name": "click", "label": "click"}])
    transformed = Transformed(tmp_path, spec, (events, users))
    rows = transformed.raw.to_pylist()
    paths = [*transformed.fn_args.train_files, *transformed.fn_args.eval_files]
    records = tf.data.TFRecordDataset(sorted(tf.io.gfile.glob(paths)), "GZIP").as_numpy_iterator()
    read = [tf.train.Example.FromString(record).features.feature for record in records]
    for channel in spec.channels[1:]:
        raw = np.array([v for row in rows for v in row[channel.feature]], np.float64)
        may_see = {
            "sequence": lambda row: np.arange(row["sequence_length"][0]) < row["train_length"][0],
            "candidate": lambda row: np.equal(row["target_split"], 0),
            "context": lambda row: [row["train_length"][0] > 0 or 0 in row["target_split"]],
        }[channel.scope]
        seen = raw[np.concatenate([may_see(row) for row in rows]).astype(bool) & ~np.isnan(raw)]
        assert len(seen) < len(raw)
        stored = channel.feature + ("" if channel.scope == "context" else "$ragged_values")
        got = np.array([v for features in read for v in features[stored].float_list.value])
        expected = raw
        if channel.normalize == "bucketize":
            expected = np.searchsorted(np.sort(seen), raw, side="right") / len(seen)
            expected[np.isnan(raw)] = np.nan
            assert np.nanmin(got) >= 0 and np.nanmax(got) <= 1
        elif channel.normalize != "none" and channel.name != "never":
            squash = np.log1p if channel.normalize == "log1p" else np.asarray
            deviation = squash(seen).std() if channel.name != "constant" else 1.0
            expected = (squash(raw) - squash(seen).mean()) / deviation
        # A day's mean, 19,002, is known to a thousandth in float32.
        tolerance = 0.1 if channel.normalize == "bucketize" else 1e-3
        np.testing.assert_allclose(np.sort(got), np.sort(expected), atol=tolerance, rtol=1e-5)


def test_a_vocabulary_holds_training_values_by_frequency_and_leaves_missing_out(transformed):
    vocabulary = transformed.output.vocabulary_by_name("shop")
    counts = collections.Counter(_training_values(transformed, "sequence_shop"))
    del counts[b""]
    assert len(vocabulary) == len(counts)
    assert [counts[v] for v in vocabulary] == sorted(counts.values(), reverse=True)


def test_missing_values_get_their_own_row_and_real_ones_never_a_reserved_one(transformed):
    for batch in transformed.batches("train", min_targets=0):
        rows = batch["sequence_item"].numpy()[batch["sequence_mask"].numpy()]
        assert set(rows[rows < NUM_RESERVED]) <= {MISSING}
        assert (rows < table_rows(transformed.spec, transformed.output)["item"]).all()


@pytest.mark.parametrize("split,code", [("train", 0), ("eval", 1)])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_pass_holds_every_target_of_its_split_once(transformed, split, code, batch_size):
    """`spend` is a random number, missing now and then: no two targets share one."""
    place = [row["target_split"] for row in transformed.raw.to_pylist()]
    labels = [row["label_spend"] for row in transformed.raw.to_pylist()]
    expected = np.concatenate(
        [np.array(v)[np.array(s) == code] for v, s in zip(labels, place, strict=True)]
    )
    got = [
        b["label_spend"].numpy()[b["target_mask"]] for b in transformed.batches(split, batch_size)
    ]
    assert len(got) > 16 / batch_size, "several groups of batches"
    np.testing.assert_array_equal(np.sort(np.concatenate(got)), np.sort(expected))


def test_training_and_serving_agree(transformed, model, signatures):
    """The same instances through the training input and through every signature."""
    raw = transformed.raw.filter(pa.array(transformed.is_eval)).to_pylist()
    # The reader sorts by length; the sort is stable, so this is its order.
    order = sorted(range(len(raw)), key=lambda i: raw[i]["sequence_length"][0])
    examples = np.array(transformed.examples, object)[transformed.is_eval]
    answers = signatures["serving_default"](tf.constant(examples[order]))
    rows = [raw[i] for i in order]
    (batch,) = file_order_batches(
        files.of_split(transformed.fn_args, transformed.spec, "eval"),
        transformed.output,
        transformed.spec,
        "eval",
        batch_size=256,
    )
    logits = model(batch)[0]
    trained = {
        "click": tf.sigmoid(logits["click"]),
        "stars": tf.nn.softmax(logits["stars"]),
        "spend": logits["spend"],
    }
    user_targets = 0
    for i, row in enumerate(rows):
        k = len(row["target_position"])
        for name, values in trained.items():
            np.testing.assert_allclose(values[i, :k], answers[name][i, :k], atol=1e-5)
        if row["target_per_user"][-1]:
            at_end = tf.sigmoid(logits["vip"][i, k - 1])
            np.testing.assert_allclose(at_end, answers["vip"][i], atol=1e-5)
            user_targets += 1
    assert len(rows) > 5 and user_targets > 3


def test_named_tensors_and_bare_requests_give_the_same_answers(transformed, signatures):
    spec = transformed.spec
    rows = [r for r in transformed.raw.to_pylist() if r["window_last"][0]][:6]
    for row in rows:
        # A request sees everything and carries candidates only where there are some.
        bare = {
            name: value
            for name, value in row.items()
            if name.startswith(("sequence_", "candidate_", "context_")) and value
        }
        bare["user_id"] = row["user_id"]
        answer = signatures["serving_default"](tf.constant([_example(bare).SerializeToString()]))
        named = signatures["predict"](**_padded(row, spec))
        for task in spec.tasks:
            np.testing.assert_allclose(answer[task.name], named[task.name], atol=1e-5)
        assert answer["click"].shape == (1, len(row["candidate_item"]))
        embedding = signatures["embed"](tf.constant([_example(bare).SerializeToString()]))
        assert embedding["embedding"].shape == (1, spec.model.hidden_dim)
        assert embedding["user_id"].numpy() == row["user_id"]
        assert answer["target_count"].numpy() == named["target_count"] == len(row["candidate_item"])


def test_what_a_server_may_merge_and_remember(transformed, exported, signatures):
    """The contract's `users`: encode once, then answer from H without the user's history."""
    contract = json.loads((exported / "assets.extra" / "serving.json").read_text())
    users = contract["users"]
    dropped = set(users["user_features"]) - set(users["tower_features"])
    for row in [r for r in transformed.raw.to_pylist() if r["window_last"][0]][:6]:
        whole = {
            name: value
            for name, value in row.items()
            if name.startswith(("sequence_", "candidate_", "context_", "user_id")) and value
        }
        rest = {name: value for name, value in whole.items() if name not in dropped}
        assert len(rest) < len(whole)
        examples = [tf.constant([_example(r).SerializeToString()]) for r in (whole, rest)]
        plain = signatures[users["signature"]](examples=examples[0])
        encoded = dict(signatures[users["encode"]](examples=examples[0]))
        embedding = encoded.pop("embedding")
        scored = signatures[users["score"]](examples=examples[1], embedding=embedding)
        assert plain.keys() == encoded.keys() == scored.keys()
        for name, value in plain.items():
            for other in (encoded[name], scored[name]):
                if name == "user_id":
                    assert value.numpy() == other.numpy()
                else:
                    np.testing.assert_allclose(value, other, atol=1e-5)
    for name, merging in contract["batching"].items():
        assert merging["pad"] == [] or set(merging["pad"]) < set(
            signatures[name].structured_input_signature[1]
        )
        assert set(merging["trim"]) | set(merging["trim"].values()) <= set(
            signatures[name].structured_outputs
        )


def test_our_server_understands_it(transformed, exported, signatures):
    """Through the server's cache of users and merged with others: the plain signature's answers."""
    rows = [r for r in transformed.raw.to_pylist() if r["window_last"][0]][:4]
    sent = []
    for row in rows:
        del row["target_position"]
        sent.append(np.array([_example(row).SerializeToString()], object))
    options = Options(warmup=False, batching=Parameters(num_batch_threads=1))
    servable = Servable(str(exported), options)
    try:
        assert servable.users is not None
        assert {"serving_default", "embed", "score_and_embed", "score", "predict"} == set(
            servable.mergings
        )
        for hits in (0, len(rows)):
            with futures.ThreadPoolExecutor(len(rows)) as clients:
                answers = list(
                    clients.map(lambda e: servable.run("serving_default", {"examples": e}), sent)
                )
            assert servable.users.hits == hits
            for examples, answer in zip(sent, answers, strict=True):
                plain = signatures["serving_default"](examples=tf.constant(examples))
                for name, value in plain.items():
                    if name == "user_id":
                        assert answer[name].tolist() == value.numpy().tolist()
                    else:
                        np.testing.assert_allclose(answer[name], value, atol=1e-5)
    finally:
        servable.close()


def test_context_that_heads_alone_read_is_no_part_of_a_remembered_user(transformed, tmp_path):
    raw = transformed.spec.model_dump(mode="json")
    raw["model"] |= {"architecture": "shared_bottom", "context": "heads"}
    raw["training"]["pretrain"]["epochs"] = 0
    spec = parse_spec(raw)
    model = UserModel(spec, table_rows(spec, transformed.output))
    model(next(iter(transformed.batches("train"))))
    export(model, transformed.output, str(tmp_path / "model"))
    row = next(r for r in transformed.raw.to_pylist() if r["window_last"][0])
    del row["target_position"]
    served = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    servable = Servable(str(tmp_path / "model"), Options(warmup=False))
    try:
        answers = []
        for hits, age in enumerate([20.0, 70.0]):
            sent = np.array([_example(row | {"context_age": [age]}).SerializeToString()], object)
            answers.append(servable.run("serving_default", {"examples": sent}))
            assert servable.users.hits == hits
            for name, value in served(examples=tf.constant(sent)).items():
                if name != "user_id":
                    np.testing.assert_allclose(answers[-1][name], value, atol=1e-5)
        one, two = answers
        assert not np.allclose(one["click"], two["click"])
    finally:
        servable.close()


def _example(row) -> tf.train.Example:
    example = tf.train.Example()
    for name, values in row.items():
        feature = example.features.feature[name]
        if isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(values[0], float):
            feature.float_list.value.extend(values)
        else:
            feature.int64_list.value.extend(values)
    return example


def _padded(row, spec):
    """One instance as `predict`'s tensors."""
    tensors = {
        "sequence_length": tf.constant(row["sequence_length"][:1], tf.int64),
        "target_count": tf.constant([len(row["candidate_item"])], tf.int64),
    }
    for channel in spec.channels:
        values = row[channel.feature]
        if getattr(channel, "multi_valued", False):
            counts = row[channel.count_feature]
            width = max([1, *counts])
            parts = np.split(np.array(values, object), np.cumsum(counts)[:-1]) if counts else []
            values = [list(p) + [b""] * (width - len(p)) for p in parts]
            values = np.array(values, object).reshape(len(counts), width)
        if channel.kind == "dense":
            dtype = tf.float32
        else:
            dtype = tf.int64 if channel.name == "item" else tf.string
        array = np.array(values, object if dtype == tf.string else dtype.as_numpy_dtype)
        array = array[0] if channel.scope == "context" else array
        tensors[channel.feature] = tf.constant(array, dtype)[tf.newaxis]
    return tensors


def test_no_op_that_threads_cant_share_is_exported(exported):
    """`modules/layers/norm.py` says which, and why."""
    content = (exported / "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    nodes = itertools.chain(*(f.node_def for f in graph.graph_def.library.function))
    assert "FusedBatchNormV3" not in {node.op for node in nodes}


def test_a_request_with_a_list_too_short_is_refused(signatures):
    served = signatures["serving_default"]
    row = {"sequence_item": [1, 2, 3], "sequence_price": [1.0, 2.0, 3.0], "candidate_item": [4]}
    answer = served(examples=tf.constant([_example(row).SerializeToString()]))
    assert answer["click"].shape == (1, 1) and np.isfinite(answer["click"]).all()
    row["sequence_price"] = [1.0, 2.0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="lists of different lengths"):
        served(examples=tf.constant([_example(row).SerializeToString()]))


@pytest.mark.slow
def test_fine_tuning_starts_from_the_pre_trained_encoder(transformed, tmp_path):
    phase = {"batch_size": 16, "epochs": 1}
    tables = two_phase_spec().model.model_copy(
        update={"full_softmax_rows": 8}
    )  # a large one among them
    spec = two_phase_spec(training={"pretrain": phase, "finetune": phase}).model_copy(
        update={"model": tables}
    )
    pretrained = transformed.train(pretrain, spec, tmp_path, None)
    rows = table_rows(spec, transformed.output)
    assert any(count > 8 for count in rows.values()) and any(count <= 8 for count in rows.values())
    fresh = UserModel(spec, rows)
    batch = next(iter(transformed.batches("train", min_events=2, min_targets=0)))
    fresh(batch)
    before = {v.name: v.numpy() for v in fresh.encoder.weights}
    placement = Synchronous(tf.distribute.get_strategy(), large_tables(spec, rows))
    placement.tables = LocalTables({n: t for n, t in fresh.tables.items() if t.large})
    base = warm_start(pretrained, fresh, placement)
    kernel = next(v for v in fresh.encoder.weights if "router" in v.name)
    assert not np.array_equal(kernel, before[kernel.name])
    with pytest.raises(FileNotFoundError, match="no pre-trained encoder"):
        warm_start(str(tmp_path / "nowhere"), fresh, placement)
    # Rows that fine-tuning never touches are in its checkpoints all the same.
    large = [table for table in fresh.tables.values() if table.large]
    trained = {table.name: table.shards[0].numpy() for table in large}
    again = UserModel(spec, rows)
    again(batch)
    assert any((trained[n] != again.tables[n].shards[0].numpy()).any() for n in trained)
    load_into(again, _saved_from(base, fresh, placement, spec, tmp_path / "checkpoints"))
    for name, values in trained.items():
        np.testing.assert_array_equal(again.tables[name].shards[0], values)


def _saved_from(base, model, placement, spec, folder):
    """The last checkpoint of a run that started from `base` and did nothing."""

    def saving():
        return Saving(
            folder,
            "run",
            model,
            Step(model, lambda batch, step: (0.0, {}), spec.training.finetune, 1),
            placement,
            "single",
            keep=1,
            max_deltas=1,
            writes=True,
            report=lambda event, **fields: None,
        )

    first = saving()
    assert first.resume() is None
    first.start_from(base)
    assert first.finish(0).step == 0
    second = saving()
    assert second.resume() == 0
    return second.finish(1)


@pytest.fixture
def restored_policy():
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.slow
def test_both_phases_and_the_export_in_mixed_precision(transformed, tmp_path, restored_policy):
    spec = two_phase_spec(training={"pretrain": {"batch_size": 16}, "finetune": {"batch_size": 16}})
    sizes = spec.model.model_copy(update={"mixed_precision": True})
    spec = spec.model_copy(update={"model": sizes})

    pretrained = transformed.train(pretrain, spec, tmp_path, None)
    exported = transformed.train(finetune, spec, tmp_path, pretrained)
    served = tf.saved_model.load(exported)
    assert {v.dtype for v in served.weights} == {tf.float32}
    examples = tf.constant(transformed.examples[:5])
    answers = served.signatures["serving_default"](examples=examples)
    answers |= served.signatures["embed"](examples=examples)
    tasks = {"click", "stars", "spend", "vip"}
    assert answers.keys() == tasks | {"target_count", "embedding", "user_id"}
    for name in tasks | {"embedding"}:
        assert answers[name].dtype == tf.float32 and np.isfinite(answers[name]).all(), name
    # H is what a bfloat16 layer norm gives, so it fits into 16 bits.
    embedding = answers["embedding"]
    np.testing.assert_array_equal(tf.cast(tf.cast(embedding, tf.bfloat16), tf.float32), embedding)
