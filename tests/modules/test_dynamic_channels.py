"""A dynamic and a compressed id channel through all of training: real Transform, both phases,
going on from a checkpoint, the export, the real server."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from modules.embeddings.compressed import MultiHashTable
from modules.embeddings.hashing import bucket
from modules.embeddings.table import NUM_RESERVED
from modules.training import files, finetune, pretrain
from modules.training.checkpoint import bundle, dense
from modules.training.cluster.config import Cluster, ClusterError
from modules.training.export import export
from modules.training.input.file_order import file_order_batches
from modules.training.loop import Preempted
from modules.training.train import restored, train
from serving.client import Client, example
from serving.local import local_server
from tests.data.small import channels_named
from tests.modules.transformed import Transformed, two_phase_spec

pytestmark = pytest.mark.slow
CAPACITY, TAIL_ROWS = 16, 6
STOPPED_AT = 4  # in the first epoch


def dynamic_spec():
    changed = {
        "item": {
            "rows": None,
            "dynamic": {
                "capacity": CAPACITY,
                "tail_rows": TAIL_ROWS,
                "admit_after": 2,
                "evict_after": 3,
            },
        },
        "shop": {"rows": 64, "top_k": 2, "compression": {"method": "multi_hash", "rows": 8}},
    }
    channels = [
        c | (changed.get(c["name"], {}) if c["scope"] == "sequence" else {})
        for c in channels_named("item", "shop", "tags", "click", "price", "age")
    ]
    phase = {"batch_size": 8, "epochs": 2, "table_learning_rate": 0.5}
    spec = two_phase_spec(channels=channels, training={"pretrain": phase, "finetune": phase})
    # Dropout's random numbers aren't those of a run that was never stopped.
    return spec.model_copy(update={"model": spec.model.model_copy(update={"dropout": 0.0})})


@pytest.fixture(scope="module")
def transformed(tmp_path_factory) -> Transformed:
    return Transformed(tmp_path_factory.mktemp("transform"), dynamic_spec())


@pytest.fixture(scope="module")
def pretrained(transformed, tmp_path_factory):
    """The model artifact, and the history's ends of epochs."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = transformed.train(pretrain, transformed.spec, folder, None)
    return model, epoch_ends(folder / "pretrain" / "run")


def epoch_ends(folder):
    records = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    return [record for record in records if record.get("epoch_end")]


def values(prefix):
    reader = bundle.Reader(str(prefix))
    return {name: reader[name] for name in reader.shapes}


def test_the_history_tells_the_lifecycle_of_every_epoch(pretrained):
    ends = [record["lifecycle"]["item"] for record in pretrained[1]]
    assert len(ends) == 2 and all(record["admitted"] > 0 for record in ends)
    assert sum(record["evicted"] for record in ends) > 0
    assert sum(record["growth"] for record in ends) == ends[-1]["occupied"] <= CAPACITY
    assert all(record["admitted"] - record["evicted"] == record["growth"] for record in ends)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(transformed, pretrained, tmp_path):
    fn_args = transformed.arguments(pretrain, transformed.spec, tmp_path, None)

    def stopped_on_the_way():
        program = pretrain.program(fn_args)

        def stop(step):
            if step == STOPPED_AT - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step

        def loss(module, batch, step):
            return program.loss(module, batch, tf.numpy_function(stop, [step], tf.int64))

        return dataclasses.replace(program, loss=loss)

    with pytest.raises(Preempted, match=f"stopped at step {STOPPED_AT}$"):
        train(stopped_on_the_way, fn_args, tmp_path, Cluster(), None)
    trained = train(lambda: pretrain.program(fn_args), fn_args, tmp_path, Cluster(), None)
    got = values(trained.checkpoint.folder / dense.NAME)
    expected = values(f"{pretrained[0]}/pretrained/dense")
    assert got.keys() == expected.keys()
    assert {f"tables/item/dynamic_rows/{name}" for name in ("keys", "rows", "cells")} <= got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, name)
    lifecycle = [record["lifecycle"] for record in epoch_ends(tmp_path)]
    assert lifecycle == [record["lifecycle"] for record in pretrained[1]]


@pytest.fixture(scope="module")
def finetuned(transformed, pretrained, tmp_path_factory):
    """The trained model, the folder of its export, and the dynamic table as training began."""
    folder = tmp_path_factory.mktemp("finetuned")
    fn_args = transformed.arguments(finetune, transformed.spec, folder, pretrained[0])
    of_phase = finetune.program(fn_args)
    begun = {}

    def start(module, placement):
        of_phase.warm_start(module, placement)
        table = module.tables["item"].dynamic_rows
        begun.update({v: getattr(table, v).numpy() for v in ("keys", "last_seen", "rows")})

    program = dataclasses.replace(of_phase, warm_start=start)
    model = restored(program, train(lambda: program, fn_args, folder, Cluster(), None))
    export(model, transformed.output, str(folder / "model" / "1"))
    return model, folder / "model", begun


def test_fine_tuning_starts_with_the_keys_of_pre_training(pretrained, finetuned):
    _, _, begun = finetuned
    saved = values(f"{pretrained[0]}/pretrained/dense")
    for name in ("keys", "rows"):
        np.testing.assert_array_equal(begun[name], saved[f"tables/item/dynamic_rows/{name}"])
    # Steps begin anew: whoever came last came one step before the first.
    (occupied,) = np.nonzero(begun["keys"].reshape(-1))
    idle = -begun["last_seen"][occupied]
    assert len(occupied) and idle.min() == 1


def test_served_answers_are_the_models(transformed, finetuned):
    model, folder, _ = finetuned
    assert isinstance(model.tables["shop"], MultiHashTable)
    spec = transformed.spec
    raw = [r for r, e in zip(transformed.raw.to_pylist(), transformed.is_eval, strict=True) if e]
    order = sorted(range(len(raw)), key=lambda i: raw[i]["sequence_length"][0])
    examples = np.array(transformed.examples, object)[transformed.is_eval][order]
    paths = files.of_split(transformed.fn_args, spec, "eval")
    (batch,) = file_order_batches(paths, transformed.output, spec, "eval", batch_size=256)
    expected = tf.sigmoid(model(batch)[0]["click"]).numpy()
    same_tail, other_tail = unseen_ids(model)
    with local_server(folder) as server, Client(server.target) as client:
        answers = client.predict("default", {"examples": list(examples)})["click"]
        for i, place in enumerate(order):
            count = len(raw[place]["target_position"])
            np.testing.assert_allclose(answers[i, :count], expected[i, :count], atol=1e-5)
        one, two, other = (click(client, item) for item in (*same_tail, other_tail))
    assert len(order) > 5
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other, atol=1e-6)


def unseen_ids(model):
    """Two ids without a row that share one of the tail, and a third that doesn't."""
    ids = np.arange(10**12, 10**12 + 50)
    rows = model.tables["item"].lookup(tf.constant(ids + NUM_RESERVED)).numpy()
    stored = model.tables["item"].dynamic_rows
    tail = stored.rows.numpy()[-TAIL_ROWS:]
    place = np.array([np.flatnonzero((tail == row).all(1)).item() for row in rows])
    np.testing.assert_array_equal(place, bucket(tf.constant(ids + NUM_RESERVED), TAIL_ROWS, 4))
    (first,) = ids[place == 0][:1]
    return (first, ids[place == 0][1]), ids[place == 1][0]


def click(client, item):
    request = example({"user_id": "u", "sequence_item": [int(item)], "candidate_item": [3]})
    return client.predict("default", {"examples": [request]})["click"]


def test_the_export_holds_what_serving_needs_and_no_more(finetuned):
    _, folder, _ = finetuned
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / "1" / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    ops = {n.op for f in graph.library.function for n in f.node_def} | {n.op for n in graph.node}
    assert "ResourceGather" in ops and not any("Mutex" in op for op in ops)
    shapes = [tuple(v.shape) for v in tf.saved_model.load(str(folder / "1")).weights]
    rows = NUM_RESERVED + CAPACITY + TAIL_ROWS
    assert (rows, 16) in shapes  # the dynamic table's
    assert (rows,) not in shapes  # its optimizer state


@pytest.mark.parametrize("placement", ["mirrored", "hybrid"])
def test_other_placements_refuse_a_dynamic_table(transformed, tmp_path, placement):
    processes = {"processes": {"ps": 1}} if placement == "hybrid" else {"devices": 2}
    cluster = {"placement": placement, **processes}
    with pytest.raises(ClusterError, match=f"{placement} can't train the dynamic table 'item'"):
        transformed.train(pretrain, transformed.spec, tmp_path, None, cluster=cluster)
