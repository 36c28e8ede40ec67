"""A version is run before it answers: by the requests it brings along, or made-up ones."""

import logging
import shutil

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving import protos, tensors
from serving.client import example
from serving.errors import ServingError
from serving.server.batching import Parameters
from serving.server.saved_model import SavedModel
from serving.server.servable import Options, Servable

ONE = np.float32(1)


@pytest.fixture
def version(tmp_path, exports):
    return shutil.copytree(exports[1.0], tmp_path / "1")


def write(version, *logs):
    """With TensorFlow's own writer."""
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as file:
        for log in logs:
            file.write(log.SerializeToString())
    return path


def predict_log(value, signature="add"):
    log = protos.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "another name counts as little as it does for TF Serving"
    request.model_spec.signature_name = signature
    for name in "xy":
        tensors.to_proto([value], request.inputs[name])
    return log


def example_log(kind, signature):
    log = protos.PredictionLog()
    request = getattr(log, kind).request
    request.model_spec.signature_name = signature
    request.input.example_list.examples.add().MergeFromString(example({"user_id": "u"}))
    return log


def multi_log():
    log = protos.PredictionLog()
    request = log.multi_inference_log.request
    task = request.tasks.add(method_name="tensorflow/serving/regress")
    task.model_spec.name, task.model_spec.signature_name = "m", "regress"
    request.input.example_list.examples.add().MergeFromString(example({"user_id": "u"}))
    return log


def load(version, **options):
    Servable(str(version), Options(**options)).close()


def test_replays_every_kind_of_request(version, caplog):
    logs = [
        predict_log(ONE),
        example_log("classify_log", "classify"),
        example_log("regress_log", "regress"),
        multi_log(),
    ]
    path = write(version, *logs)
    with caplog.at_level(logging.INFO):
        load(version)
    assert f"warmed up with 4 requests of {path}" in caplog.messages


def session_run_log():
    log = protos.PredictionLog()
    log.session_run_log.request.model_spec.name = "m"
    return log


@pytest.mark.parametrize(
    ("log", "code", "text"),
    [
        (predict_log(np.int64(1)), "INVALID_ARGUMENT", "expected float32, got int64"),
        (predict_log(ONE, "nosuch"), "FAILED_PRECONDITION", '"nosuch" not found'),
        (example_log("classify_log", "nosuch"), "INVALID_ARGUMENT", "No signature was found"),
        (session_run_log(), "UNIMPLEMENTED", "log_type for warmup: session_run_log"),
    ],
)
def test_a_request_that_fails_fails_the_load(version, log, code, text):
    path = write(version, predict_log(ONE), log)
    with pytest.raises(ServingError, match=text) as caught:
        load(version)
    assert caught.value.code.name == code
    assert str(path) in caught.value.message
    load(version, warmup=False)


def test_more_than_1000_requests_are_too_many(version):
    write(version, *[predict_log(ONE)] * 1000)
    load(version)
    write(version, *[predict_log(ONE)] * 1001)
    with pytest.raises(ServingError, match=r"exceeds the maximum \(1000\)") as caught:
        load(version)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "content", [b"not a TFRecord file", b"short", b"\x05" + b"\0" * 11 + b"abc"]
)
def test_a_file_of_another_kind(version, content):
    write(version).write_bytes(content)
    with pytest.raises(ServingError, match="verify your warmup data is in TFRecord") as caught:
        load(version)
    assert caught.value.code == grpc.StatusCode.DATA_LOSS


def test_without_a_file_requests_are_made_up(version, caplog, monkeypatch):
    """Most signatures need `user_id`: they say so, and the model loads all the same."""
    rows = []
    run = SavedModel.run

    def recorded(self, signature, requests, outputs=None, held=None):
        rows.append((signature, np.atleast_1d(next(iter(requests[0].values()))).shape[0]))
        return run(self, signature, requests, outputs, held)

    monkeypatch.setattr(SavedModel, "run", recorded)
    with caplog.at_level(logging.INFO):
        load(version, batching=Parameters(max_batch_size=8))
    assert "warmed up add with made-up requests" in caplog.messages
    assert "warmed up pool with made-up requests" in caplog.messages
    assert any("embed doesn't take a made-up request" in text for text in caplog.messages)
    assert {("add", 1), ("add", 8), ("pool", 1), ("pool", 8)} <= set(rows)
    assert not any(signature.startswith("__") for signature, _ in rows)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> str:
    """Signatures whose requests aren't merged, and one nobody here can make a request for."""
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x})
    specs = {
        "complex": tf.TensorSpec([None], tf.complex64, name="x"),
        "fixed": tf.TensorSpec([2, 3], tf.float32, name="x"),
        "scalar": tf.TensorSpec([], tf.int64, name="x"),
        "wide": tf.TensorSpec([None, None], tf.float32, name="x"),
    }
    path = str(tmp_path_factory.mktemp("odd") / "1")
    signatures = {name: module.double.get_concrete_function(spec) for name, spec in specs.items()}
    tf.saved_model.save(module, path, signatures=signatures)
    return path


def test_signatures_that_arent_merged_are_run_too_and_odd_dtypes_left_out(odd, caplog):
    with caplog.at_level(logging.INFO):
        load(odd)
    for name in ("fixed", "scalar", "wide"):
        assert f"warmed up {name} with made-up requests" in caplog.messages
    (skipped,) = [text for text in caplog.messages if "warm-up: complex" in text]
    assert "doesn't take a made-up request" in skipped and "unsupported dtype 8" in skipped
