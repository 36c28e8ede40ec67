"""What is served when directories and configurations change."""

from __future__ import annotations

import pathlib
import shutil
import time

import grpc
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2, prediction_log_pb2

from tests.conformance.conftest import entry
from tests.conformance.test_grpc import X, predict_request, y


def config(*entries: str) -> str:
    return f"model_config_list {{ {' '.join(entries)} }}"


def reload(server, text: str):
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, request.config)
    return server.models.HandleReloadConfigRequest(request, timeout=60)


def wait_states(server, model: str, expected: dict[int, str], seconds: float = 30.0) -> None:
    """END and versions nobody knows any more are the same to a caller."""

    def states():
        return {v: s for v, s in server.states(model).items() if s != "END"}

    deadline = time.monotonic() + seconds
    while states() != expected:
        assert time.monotonic() < deadline, f"{states()}, want {expected}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def changing(start, base_path):
    """A server that the tests below give new configurations; `keep` is served throughout."""
    keep = entry("keep", base_path({1: 0.5}))
    running = start(config(keep))
    running.wait_available("keep", 1)
    return running, keep


def test_policies(changing, base_path):
    server, keep = changing
    path = base_path({1: 0.5, 2: 1.0, 3: 3.0})
    policies = {
        "": [3],
        "latest { num_versions: 2 }": [2, 3],
        "specific { versions: 1 }": [1],
        "all {}": [1, 2, 3],
    }
    for policy, served in policies.items():
        more = f"model_version_policy {{ {policy} }}" if policy else ""
        reload(server, config(keep, entry("m", path, more)))
        wait_states(server, "m", dict.fromkeys(served, "AVAILABLE"))
        assert (
            y(server.predictions.Predict(predict_request(name="m")))
            == {
                1: [2.5, 3.0],
                3: [5.0, 8.0],
            }[max(served)]
        )


def test_models_come_and_go(changing, base_path):
    server, keep = changing
    more = entry("more", base_path({4: 3.0}))
    assert reload(server, config(keep, more)).status.error_code == 0
    assert y(server.predictions.Predict(predict_request(name="more"))) == [5.0, 8.0]
    reload(server, config(keep))
    wait_states(server, "more", {})
    with pytest.raises(grpc.RpcError) as caught:
        server.predictions.Predict(predict_request(name="more"))
    assert caught.value.code().name == "NOT_FOUND"
    assert y(server.predictions.Predict(predict_request(name="keep"))) == [2.5, 3.0]


def test_labels_move(changing, base_path):
    server, keep = changing
    policy = "model_version_policy { all {} }"
    path = base_path({1: 0.5, 2: 1.0})
    reload(server, config(keep, entry("l", path, policy)))
    server.wait_available("l", 1, 2)
    for version, answer in ((1, [2.5, 3.0]), (2, [3.0, 4.0])):
        label = f'version_labels {{ key: "live" value: {version} }}'
        reload(server, config(keep, entry("l", path, policy + label)))
        assert y(server.predictions.Predict(predict_request(name="l", label="live"))) == answer
    with pytest.raises(grpc.RpcError) as caught:
        moved = 'version_labels { key: "live" value: 9 }'
        reload(server, config(keep, entry("l", path, policy + moved)))
    assert caught.value.code().name == "FAILED_PRECONDITION"
    assert y(server.predictions.Predict(predict_request(name="l", label="live"))) == [3.0, 4.0]


@pytest.mark.parametrize("wrong", ["twice", "relative path", "no platform", "custom"])
def test_a_wrong_configuration_changes_nothing(changing, base_path, wrong):
    server, keep = changing
    path = base_path({1: 0.5})
    texts = {
        "twice": config(keep, entry("m2", path), entry("m2", path)),
        "relative path": config(keep, entry("m2", "models/m2")),
        "no platform": config(keep, f'config {{ name: "m2" base_path: "{path}" }}'),
        "custom": "custom_model_config {}",
    }
    with pytest.raises(grpc.RpcError) as caught:
        reload(server, texts[wrong])
    assert caught.value.code().name in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    assert server.states("m2") == {}
    assert y(server.predictions.Predict(predict_request(name="keep"))) == [2.5, 3.0]


def test_a_new_version_takes_over_and_a_deleted_one_gives_way(changing, base_path, exports):
    server, keep = changing
    path = base_path({1: 0.5})
    reload(server, config(keep, entry("d", path)))
    wait_states(server, "d", {1: "AVAILABLE"})
    shutil.copytree(exports[1.0], path / "2.partial")
    (path / "2.partial").rename(path / "2")
    wait_states(server, "d", {2: "AVAILABLE"})
    assert y(server.predictions.Predict(predict_request(name="d"))) == [3.0, 4.0]
    shutil.rmtree(path / "2")
    wait_states(server, "d", {1: "AVAILABLE"})


def test_a_version_that_cant_be_loaded_leaves_the_old_one(changing, base_path):
    server, keep = changing
    path = base_path({1: 0.5})
    reload(server, config(keep, entry("c", path)))
    (path / "2.partial").mkdir()
    (path / "2.partial" / "saved_model.pb").write_bytes(b"no model")
    (path / "2.partial").rename(path / "2")
    deadline = time.monotonic() + 30
    while server.states("c").get(2) != "END":
        assert time.monotonic() < deadline, server.states("c")
        time.sleep(0.05)
    assert server.states("c")[1] == "AVAILABLE"
    assert y(server.predictions.Predict(predict_request(name="c"))) == [2.5, 3.0]


def write_warmup(version: pathlib.Path, request) -> None:
    """TF Serving reads a TFRecord of PredictionLogs."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(request)
    (version / "assets.extra").mkdir(exist_ok=True)
    path = str(version / "assets.extra" / "tf_serving_warmup_requests")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(log.SerializeToString())


@pytest.mark.parametrize("good", [True, False])
def test_warm_up_requests_run_before_a_version_is_available(changing, base_path, good):
    """A version whose warm-up fails isn't served."""
    server, keep = changing
    path = base_path({1: 0.5, 2: 1.0})
    write_warmup(path / "2", predict_request(X, name="w", signature="" if good else "fails"))
    model = entry("w", path, "model_version_policy { all {} }")
    try:
        reload(server, config(keep, model))
    except grpc.RpcError as error:  # A model of a new configuration can't be loaded.
        assert not good and "refused" in error.details()
    server.wait_available("w", 1)
    if good:
        server.wait_available("w", 2)
    else:
        assert server.states("w")[2] == "END"
