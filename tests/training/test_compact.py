"""A compacted SavedModel answers as before, with its side effects, from fewer operations."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from modules.training.compact import compact


@tf.custom_gradient
def halved(x):
    return x * 0.5, lambda dy: dy


class Model(tf.Module):
    """Work nobody reads, a constant in many places, branches, a check and a count of calls."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0, dtype=tf.int64)
        self.scale = tf.Variable([1.0, 2.0, 3.0])

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def serve(self, x):
        unused = x
        for _ in range(20):
            unused = tf.tanh(unused) + 0.5
        self.calls.assign_add(1)
        tf.debugging.Assert(tf.reduce_all(x < 100.0), ["too large"])
        y = x * self.scale
        for _ in range(10):
            y = tf.where(y > 0.5, halved(y), y + tf.cast(1, tf.float32))
        y = tf.cond(tf.size(x) > 6, lambda: y + 7.0 + 7.0, lambda: y - 7.0)
        y = tf.while_loop(lambda y: tf.reduce_max(y) < 50.0, lambda y: [y + 3.0], [y])[0]
        with tf.control_dependencies([tf.constant(1.0), tf.constant(1.0)]):
            return {"y": tf.identity(y), "constant": tf.constant(0.5), "same": tf.constant(0.5)}


def nodes(folder: pathlib.Path) -> list:
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    library = saved.meta_graphs[0].graph_def.library.function
    return [node for function in library for node in function.node_def]


def operations(folder: pathlib.Path) -> list[str]:
    return [node.op for node in nodes(folder)]


@pytest.fixture(scope="module")
def before_and_after(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    before = tmp_path_factory.mktemp("saved") / "before"
    model = Model()
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(model, str(before), signatures=model.serve, options=options)
    after = before.with_name("after")
    shutil.copytree(before, after)
    compact(str(after))
    return before, after


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_answers_and_state_stay_bit_for_bit(before_and_after, rows):
    x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    before, after = (tf.saved_model.load(str(folder)) for folder in before_and_after)
    for calls in (1, 2):
        expected = before.signatures["serving_default"](x=tf.constant(x))
        answers = after.signatures["serving_default"](x=tf.constant(x))
        assert expected.keys() == answers.keys()
        for name, value in expected.items():
            assert answers[name].numpy().tobytes() == value.numpy().tobytes()
        assert after.calls.numpy() == calls


def test_checks_still_fire(before_and_after):
    model = tf.saved_model.load(str(before_and_after[1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        model.signatures["serving_default"](x=tf.fill([1, 3], 101.0))


def test_what_nobody_reads_is_gone(before_and_after):
    before, after = map(operations, before_and_after)
    assert "Tanh" in before
    assert "Tanh" not in after
    assert after.count("Const") < before.count("Const") / 2
    effects = {"AssignAddVariableOp", "Assert", "While", "StatelessWhile", "If", "StatelessIf"}
    for op in effects & set(before):
        assert after.count(op) == before.count(op)


def test_no_operation_names_a_gradient(before_and_after):
    before, after = before_and_after
    assert any("_gradient_op_type" in node.attr for node in nodes(before))
    assert not any("_gradient_op_type" in node.attr for node in nodes(after))


def test_a_second_time_changes_nothing(before_and_after):
    after = before_and_after[1]
    once = (after / "saved_model.pb").read_bytes()
    compact(str(after))
    assert (after / "saved_model.pb").read_bytes() == once


def test_the_fingerprint_is_of_the_file_that_is_there(before_and_after):
    before, after = (
        tf.saved_model.experimental.read_fingerprint(str(folder)) for folder in before_and_after
    )
    assert before.saved_model_checksum != after.saved_model_checksum
    assert before.signature_def_hash == after.signature_def_hash
