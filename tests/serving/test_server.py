"""The real server as a subprocess, over real gRPC."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import protos, tensors
from serving.client import Client, ServingError, example
from serving.client import __main__ as command
from serving.local import local_server
from tests.serving.process import run_server, wait_until

USER = {"user_id": "u1", "sequence_item": [100, 200], "candidate_price": [0.5, -1.0, 2.0]}


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


# --- answers


def test_predict_by_serialized_examples(client):
    answer = client.predict("users", {"examples": [example(USER)]})
    np.testing.assert_allclose(answer["click"], sigmoid([[0.8, -0.7, 2.3]]), atol=1e-6)
    np.testing.assert_allclose(answer["vip"], sigmoid([0.3]), atol=1e-6)
    assert answer["user_id"].tolist() == [b"u1"]


def test_embed_and_version_and_outputs(client):
    answer = client.predict(
        "users", {"examples": [example(USER)]}, signature="embed", version=7, outputs=["embedding"]
    )
    assert list(answer) == ["embedding"]
    np.testing.assert_allclose(answer["embedding"], [[0.3, 0.002, -0.3, 0.6]], atol=1e-6)


def test_one_user_with_a_thousand_candidates(client):
    prices = np.linspace(-3, 3, 1000, dtype=np.float32)
    answer = client.predict("users", {"examples": [example({**USER, "candidate_price": prices})]})
    np.testing.assert_allclose(answer["click"], sigmoid([prices + 0.3]), atol=1e-6)


def test_no_candidates(client):
    user = {key: value for key, value in USER.items() if key != "candidate_price"}
    assert client.predict("users", {"examples": [example(user)]})["click"].shape == (1, 0)


def test_named_tensors_are_cast_where_their_kind_allows(client):
    assert client.predict("users", {"x": [1, 2], "y": [0.5, 1.0]}, signature="add")[
        "sum"
    ].tolist() == [1.5, 3.0]


def test_messages_over_grpcs_4_mb(client):
    x = np.ones(3 << 20, np.float32)
    answer = client.predict("users", {"x": x, "y": x}, signature="add")
    assert (answer["sum"] == 2).all() and answer["sum"].nbytes == x.nbytes


def test_status_and_metadata(client):
    assert [(s.version, s.state, s.error) for s in client.status("users")] == [(7, "AVAILABLE", "")]
    signatures = client.metadata("users")
    assert {"serving_default", "embed", "add", "spin"} <= set(signatures)
    assert signatures["embed"].inputs["examples"].dtype == "string"
    assert signatures["embed"].outputs["embedding"].shape == (None, 4)


# --- unmodified tensorflow-serving-api stubs


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def their_request(inputs: dict, signature: str = "", name: str = "users"):
    import tensorflow as tf

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def test_stubs_predict(stub):
    import tensorflow as tf

    response = stub.Predict(their_request({"examples": [example(USER)]}))
    assert response.model_spec.name == "users"
    assert response.model_spec.version.value == 7
    assert response.model_spec.signature_name == "serving_default"
    click = response.outputs["click"]
    np.testing.assert_allclose(tf.make_ndarray(click), sigmoid([[0.8, -0.7, 2.3]]), atol=1e-6)
    # TF Serving answers in typed fields unless told otherwise, and people read them.
    assert len(click.float_val) == 3 and not click.tensor_content


def test_stubs_metadata_and_status(stub, channel):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "users"
    response = stub.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert "examples" in signatures.signature_def["embed"].inputs
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "users"
    answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status)
    assert answer.model_version_status[0].state == 30
    assert answer.model_version_status[0].status.error_code == 0


def rpc_error(call) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


ONES = {"x": np.float32([1]), "y": np.float32([1])}


def test_status_codes_and_messages_are_tf_servings(stub, channel):
    def answer(inputs, signature="add", name="users", change=None):
        request = their_request(inputs, signature, name)
        if change:
            change(request)
        return rpc_error(lambda: stub.Predict(request))

    def set_version(request):
        request.model_spec.version.value = 99

    def set_label(request):
        request.model_spec.version_label = "canary"

    invalid = "INVALID_ARGUMENT"
    assert answer(ONES, name="nobody") == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nobody)",
    )
    assert answer(ONES, change=set_version) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(users, 99)",
    )
    assert answer(ONES, signature="sing") == (
        "FAILED_PRECONDITION",
        'Serving signature key "sing" not found.',
    )
    assert answer(ONES, name="") == (invalid, "ModelSpec has no name specified.")
    assert answer(ONES, change=set_label) == (
        invalid,
        "Unrecognized servable version label: canary",
    )
    assert answer({"x": ONES["x"]}) == (
        invalid,
        "input size does not match signature: 1!=2 len({x}) != len({x,y})."
        " Sent extra: {}. Missing but required: {y}.",
    )
    assert answer({"x": ONES["x"], "z": ONES["x"]}) == (
        invalid,
        "input tensor alias not found in signature: z. Inputs expected to be in the set {x,y}.",
    )
    assert answer(ONES, change=lambda r: r.output_filter.append("product")) == (
        invalid,
        "output tensor alias not found in signature: product"
        " Outputs expected to be in the set {difference,sum}.",
    )
    assert answer(ONES, change=lambda r: r.output_filter.extend(["sum", "sum"])) == (
        invalid,
        "duplicate output tensor alias: sum",
    )
    assert answer({"x": np.int32([1]), "y": ONES["y"]}) == (
        invalid,
        "input x: expected float32, got int32",
    )
    code, text = answer(ONES, change=lambda r: r.inputs["x"].tensor_shape.dim.add())
    assert code == invalid and text.startswith("tensor parsing error: x")
    empty = predict_pb2.PredictRequest()
    assert rpc_error(lambda: stub.Predict(empty)) == (invalid, "Missing ModelSpec")
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata.model_spec.name = "users"
    assert rpc_error(lambda: stub.GetModelMetadata(metadata)) == (
        invalid,
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    metadata.metadata_field.append("weights")
    assert rpc_error(lambda: stub.GetModelMetadata(metadata)) == (
        invalid,
        "Metadata field weights is not supported",
    )
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "nobody"
    ask = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus
    assert rpc_error(lambda: ask(status)) == (
        "NOT_FOUND",
        "Could not find any versions of model nobody",
    )
    garbled = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert rpc_error(lambda: garbled(b"\x0a\xff")) == (
        invalid,
        "the request is no valid PredictRequest",
    )
    unknown = channel.unary_unary("/tensorflow.serving.PredictionService/Sing")
    assert rpc_error(lambda: unknown(b""))[0] == "UNIMPLEMENTED"


def test_a_bad_example_is_the_callers_fault(stub):
    request = their_request({"examples": [b"\xff\xff"]}, "serving_default")
    code, text = rpc_error(lambda: stub.Predict(request))
    assert code == "INVALID_ARGUMENT" and "Could not parse example input" in text


# --- the client's own checks


@pytest.mark.parametrize(
    "inputs, signature, code, text",
    [
        ({"instances": [b""]}, "embed", "INVALID_ARGUMENT", "takes the inputs examples (string)"),
        ({"examples": [1, 2]}, "embed", "INVALID_ARGUMENT", "is string, got int64"),
        ({"examples": [[b""]]}, "embed", "INVALID_ARGUMENT", "has shape [any], got [1, 1]"),
        ({"x": ["a"], "y": [1]}, "add", "INVALID_ARGUMENT", "is float32, got text"),
        ({"x": [[1], [1, 2]], "y": [1]}, "add", "INVALID_ARGUMENT", "rows have different lengths"),
        ({"x": [1], "y": [1]}, "sing", "FAILED_PRECONDITION", "it has: add, classify, embed, pool"),
    ],
)  # fmt: skip
def test_client_refuses_before_the_wire(client, monkeypatch, inputs, signature, code, text):
    monkeypatch.setattr(client._flows, "_send", None)  # sending would fail
    with pytest.raises(ServingError) as caught:
        client.predict("users", inputs, signature=signature)
    assert caught.value.code.name == code
    assert text in caught.value.message


def test_client_names_a_dead_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
    with Client(target) as asking, pytest.raises(ServingError) as caught:
        asking.predict("users", {"examples": [b""]})
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert target in caught.value.message and "start one with" in caught.value.message


def test_client_imports_no_tensorflow():
    code = (
        "import sys, serving.client.__main__\n"
        "assert not {'tensorflow', 'data', 'modules', 'tfx_pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_server_imports_no_tensorflow():
    code = (
        "import sys, serving.server.__main__\n"
        "assert not {'tensorflow', 'data', 'modules', 'tfx_pipeline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the command line


def test_command_line(server, tmp_path, capsys):
    file = tmp_path / "users.jsonl"
    file.write_text(json.dumps(USER) + "\n" + json.dumps({**USER, "user_id": "u2"}) + "\n")
    flags = ["--target", server.target, "--model", "users", "--examples", str(file)]
    assert command.main(flags) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["user_id"] for row in rows] == ["u1", "u2"]
    np.testing.assert_allclose(rows[0]["click"], sigmoid([0.8, -0.7, 2.3]), atol=1e-6)
    assert command.main([*flags, "--signature", "embed", "--limit", "1"]) == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert row == {"embedding": [0.3, 0.002, -0.3, 0.6], "user_id": "u1"}


def test_command_line_errors_are_one_line(server, tmp_path, capsys):
    flags = ["--target", server.target, "--examples", str(tmp_path / "none.jsonl")]
    assert command.main(flags) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "users.jsonl").write_text(json.dumps(USER))
    flags = ["--target", "127.0.0.1:1", "--examples", str(tmp_path / "users.jsonl")]
    assert command.main(flags) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "127.0.0.1:1" in error and "Traceback" not in error


# --- versions


def test_hot_swaps_under_traffic_lose_no_request(push, tmp_path):
    push(1.0, tmp_path, 1)
    stop, failures, versions = threading.Event(), [], set()
    scale = {1: 1.0, 2: 2.0, 3: 1.0, 4: 2.0}

    def traffic(target: str) -> None:
        request = protos.PredictRequest()
        request.model_spec.name = "default"
        request.model_spec.signature_name = "add"
        for name in ("x", "y"):
            tensors.to_proto(np.float32([1]), request.inputs[name])
        with grpc.insecure_channel(target) as channel:
            predict = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=protos.PredictResponse.FromString,
            )
            while not stop.is_set():
                try:
                    answer = predict(request, timeout=10)
                except grpc.RpcError as error:
                    failures.append(error)
                    continue
                version = answer.model_spec.version.value
                versions.add(version)
                if answer.outputs["sum"].float_val[0] != 2 * scale[version]:
                    failures.append(version)

    with local_server(tmp_path, flags=("--file_system_poll_wait_seconds=0.1",)) as server:
        threads = [threading.Thread(target=traffic, args=(server.target,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in (2, 3, 4):
            push(scale[number], tmp_path, number)
            wait_until(lambda number=number: number in versions)
        stop.set()
        for thread in threads:
            thread.join()
        with Client(server.target) as asking:
            wait_until(
                lambda: (
                    [(s.version, s.state) for s in asking.status("default")]
                    == [(4, "AVAILABLE"), (3, "END"), (2, "END"), (1, "END")]
                )
            )
    assert not failures
    assert versions == {1, 2, 3, 4}


def test_a_corrupt_version_leaves_the_old_one_serving_until_mended(push, tmp_path):
    push(1.0, tmp_path, 1)
    with (
        local_server(tmp_path, flags=("--file_system_poll_wait_seconds=0.1",)) as server,
        Client(server.target) as asking,
    ):

        def newest():
            return asking.status("default")[0]

        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "half.written").touch()
        (tmp_path / "note.txt").touch()
        (tmp_path / "3").mkdir()
        (tmp_path / "3" / "saved_model.pb").write_bytes(b"not a model")
        wait_until(lambda: newest().version == 3 and newest().state == "END")
        assert newest().error
        assert {s.version for s in asking.status("default")} == {1, 3}
        ones = {"x": [1.0], "y": [1.0]}
        assert asking.predict("default", ones, signature="add")["sum"] == [2.0]
        with pytest.raises(ServingError, match="NOT_FOUND"):
            asking.predict("default", ones, signature="add", version=3)
        (tmp_path / "3" / "saved_model.pb").unlink()
        (tmp_path / "3").rmdir()
        push(2.0, tmp_path, 3)
        wait_until(lambda: newest().state == "AVAILABLE")
        assert asking.predict("default", ones, signature="add")["sum"] == [4.0]
        assert server.log().count("can't be loaded") == 1  # not at every poll


def test_deleting_the_newest_rolls_back(push, tmp_path):
    push(1.0, tmp_path, 1)
    newest = push(2.0, tmp_path, 2)
    with (
        local_server(tmp_path, flags=("--file_system_poll_wait_seconds=0.1",)) as server,
        Client(server.target) as asking,
    ):
        newest.rename(tmp_path / "withdrawn")
        wait_until(lambda: asking.status("default", version=2)[0].state == "END")
        answer = asking.predict("default", {"x": [1.0], "y": [1.0]}, signature="add")
        assert answer["sum"] == [2.0]


# --- the process


def test_sigterm_finishes_requests_under_way_and_exits_0(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path) as server, Client(server.target) as asking:
        answers = []

        def ask(steps: int) -> None:
            inputs = {"steps": steps}
            answers.append(asking.predict("default", inputs, signature="spin", timeout=60)["total"])

        ask(1)
        call = threading.Thread(target=ask, args=(400_000,))
        call.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert len(answers) == 1  # it is still under way
        assert server.process.wait(20) == 0
        call.join()
        assert answers == [1.0, 400_000.0]
        with pytest.raises(ServingError, match="no model server answers"):
            asking.status("default")


def test_two_signals_at_once_still_stop_it(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path) as server:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            server.process.send_signal(number)
        assert server.process.wait(20) == 0


def test_a_killed_server_is_one_clear_error(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path) as server, Client(server.target) as asking:
        asking.status("default")
        server.process.kill()
        server.process.wait()
        with pytest.raises(ServingError) as caught:
            asking.predict("default", {"x": [1.0], "y": [1.0]}, signature="add")
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE


def test_waits_for_a_missing_base_path_with_one_warning(push, tmp_path):
    command_line = [sys.executable, "-m", "serving.server", "--port=0"]
    command_line += [f"--model_base_path={tmp_path}/later", "--file_system_poll_wait_seconds=0.1"]
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(command_line, stderr=log)
        try:
            wait_until(lambda: "waiting for it" in (tmp_path / "log").read_text())
            time.sleep(0.5)
            (tmp_path / "later").mkdir()
            wait_until(lambda: "waiting for one" in (tmp_path / "log").read_text())
            push(1.0, tmp_path / "later", 1)
            wait_until(lambda: "ready: default" in (tmp_path / "log").read_text())
        finally:
            process.terminate()
        assert process.wait(10) == 0
        text = (tmp_path / "log").read_text()
    assert text.count("waiting for it") == 1 and text.count("waiting for one") == 1


def test_bad_base_paths_are_one_clear_error(tmp_path, exports):
    (tmp_path / "file").touch()
    for path, text in (
        (tmp_path / "file", "is a file"),
        (exports[1.0], "is itself a SavedModel"),
        ("gs://bucket/models", "must be a local directory"),
    ):
        done = run_server(f"--model_base_path={path}")
        assert done.returncode == 1
        assert text in done.stderr and done.stderr.count("\n") == 1
    assert "--model_base_path" in run_server().stderr


def test_a_taken_port_is_one_clear_error(tmp_path, server):
    port = server.target.rpartition(":")[2]
    done = run_server(f"--model_base_path={tmp_path}", f"--port={port}")
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr


def test_local_server_says_why_a_model_doesn_t_load(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(ServingError, match="version 1 can't be loaded"), local_server(tmp_path):
        pass
    with (
        pytest.raises(ServingError, match="DEADLINE_EXCEEDED"),
        local_server(tmp_path / "none", deadline=1.0),
    ):
        pass


def test_tensor_content_by_flag(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path, flags=("--enable_serialization_as_tensor_content",)) as server:
        with grpc.insecure_channel(server.target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(their_request(ONES, "add", "default"))
        assert answer.outputs["sum"].tensor_content and not answer.outputs["sum"].float_val
