"""What whoever runs a server relies on: health, metrics, the request log, limits, draining."""

import gzip
import json
import pathlib
import re
import signal
import socket
import threading

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from serving import protos, tensors
from serving.client import Client, ServingError, example
from serving.local import local_server
from tests.serving.http import ask
from tests.serving.process import wait_until

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
SERVING, NOT_SERVING = 1, 2


def health_of(channel: grpc.Channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def samples(page: bytes) -> dict[tuple[str, ...], float]:
    """(name, label values in the order of their names …) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


# --- health


def test_ready_once_every_model_is(push, tmp_path):
    push(1.0, tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    path = tmp_path / "models.config"
    path.write_text(
        "model_config_list {"
        + "".join(
            f'config {{ name: "{name}" base_path: "{tmp_path}/{name}"'
            ' model_platform: "tensorflow" }'
            for name in "ab"
        )
        + "}"
    )
    flags = (
        f"--model_config_file={path}",
        "--rest_api_port=-1",
        "--file_system_poll_wait_seconds=0.1",
    )
    with (
        local_server(None, "a", flags=flags) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        assert ask(f"{server.rest_url}/healthz").code == 200
        assert ask(f"{server.rest_url}/readyz").code == 503
        assert health_of(channel) == health_of(channel, PREDICTION_SERVICE) == NOT_SERVING
        push(1.0, tmp_path / "b", 1)
        wait_until(lambda: ask(f"{server.rest_url}/readyz").code == 200)
        assert health_of(channel) == health_of(channel, PREDICTION_SERVICE) == SERVING
        assert health_of(channel, "tensorflow.serving.ModelService") == SERVING
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            health_of(channel, "sing")


# --- metrics


def test_metrics_count_by_what_is_served_not_by_what_is_asked(server, client):
    page = f"{server.rest_url}/monitoring/prometheus/metrics"

    def count(method: str, entrypoint: str, model: str, signature: str, status: str) -> float:
        labels = (method, entrypoint, model, signature, status)
        return found.get((":tensorflow:serving:request_count", *labels), 0)

    def counts() -> list[float]:
        return [
            count("Predict", "GRPC", "users", "add", "OK"),
            count("Predict", "REST", "users", "add", "OK"),
            count("Predict", "GRPC", "users", "", "INVALID_ARGUMENT"),
            count("Predict", "GRPC", "", "", "NOT_FOUND"),
            count("Predict", "GRPC", "", "", "INVALID_ARGUMENT"),
            count("Predict", "REST", "", "", "INVALID_ARGUMENT"),
            found.get(
                (":tensorflow:serving:request_latency_count", "Predict", "GRPC", "users", "add"), 0
            ),
        ]

    client.predict("users", {"x": [1.0], "y": [1.0]}, signature="add")
    found = samples(ask(page).body)
    before = counts()
    client.predict("users", {"x": [1.0], "y": [1.0]}, signature="add")
    inputs = {"signature_name": "add", "inputs": {"x": [1], "y": [1]}}
    ask(f"{server.rest_url}/v1/models/users:predict", inputs)
    with grpc.insecure_channel(server.target) as channel:
        predict = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
        for name in ("users", "nobody-1", "nobody-2"):
            request = protos.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = "add"
            with pytest.raises(grpc.RpcError):
                predict(request.SerializeToString())
        with pytest.raises(grpc.RpcError):
            predict(b"\x0a\xff")
        status = protos.GetModelStatusRequest()
        status.model_spec.name, status.model_spec.signature_name = "users", "nobody-3"
        channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")(
            status.SerializeToString()
        )
    ask(f"{server.rest_url}/v1/models/users:predict", b"{")
    answer = ask(page)
    assert answer.headers["Content-Type"].startswith("text/plain")
    found = samples(answer.body)
    gained = [after - count for after, count in zip(counts(), before, strict=True)]
    assert gained == [1, 1, 1, 2, 1, 1, 1]
    assert b"nobody" not in answer.body
    assert found["serving_version_available", "users", "7"] == 1
    assert found["process_resident_memory_bytes",] > 0
    assert re.search(rb"^# TYPE :tensorflow:serving:request_latency histogram$", answer.body, re.M)


def test_metrics_of_batches(server, client):
    def found(name: str, *labels: str) -> float:
        page = ask(f"{server.rest_url}/monitoring/prometheus/metrics").body
        return samples(page)[(f"serving_{name}", *labels)]

    def counted() -> list[float]:
        bounds = ("2.0", "4.0", "+Inf")
        rows = [found("batch_rows_bucket", bound, "users", "7") for bound in bounds]
        return [*rows, *(found(f"batch_rows_{of}", "users", "7") for of in ("count", "sum"))]

    before = counted()
    client.predict("users", {"x": [1.0] * 3, "y": [1.0] * 3}, signature="add")
    gained = [after - count for after, count in zip(counted(), before, strict=True)]
    assert gained == [0, 1, 1, 1, 3]
    assert found("queued_rows", "users", "7") == 0


def test_metrics_of_the_user_cache(server, client):
    def hits_and_misses() -> tuple[float, float]:
        found = samples(ask(f"{server.rest_url}/monitoring/prometheus/metrics").body)
        hits, misses = (f"serving_user_cache_{what}_total" for what in ("hits", "misses"))
        return found[hits, "users", "7"], found[misses, "users", "7"]

    user = example({"user_id": "seen-twice", "sequence_item": [1], "candidate_price": [0.5]})
    hits, misses = hits_and_misses()
    for _ in range(2):
        client.predict("users", {"examples": [user]})
    assert hits_and_misses() == (hits + 1, misses + 1)


def test_no_metrics_unless_asked_for(push, tmp_path):
    push(1.0, tmp_path, 1)
    flags = ("--rest_api_port=-1", "--rest_api_enable_cors_support")
    with local_server(tmp_path, flags=flags) as server:
        assert ask(f"{server.rest_url}/monitoring/prometheus/metrics").code == 404
        answer = ask(f"{server.rest_url}/v1/models/default:predict", verb="OPTIONS")
        assert answer.code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "*"


# --- the request log


def test_request_log(push, tmp_path):
    push(1.0, tmp_path / "m", 1)
    log = tmp_path / "requests.jsonl"
    flags = ("--rest_api_port=-1", f"--request_log_file={log}", "--request_log_sampling=1")
    with local_server(tmp_path / "m", "m", flags=flags) as server, Client(server.target) as client:
        client.predict("m", {"x": [1.0, 123456.0], "y": [1.0, 1.0]}, signature="add")
        body = {"signature_name": "regress", "examples": [{"user_id": "secret"}]}
        assert ask(f"{server.rest_url}/v1/models/m:regress", body).code == 200
        with pytest.raises(ServingError):
            client.status("nobody")
        assert server.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    predict = next(line for line in lines if line["method"] == "Predict")
    assert predict.pop("milliseconds") > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", predict.pop("time"))
    assert predict == {
        "method": "Predict",
        "entrypoint": "GRPC",
        "model": "m",
        "version": 1,
        "signature": "add",
        "batch_size": 2,
        "code": "OK",
    }
    regress = next(line for line in lines if line["method"] == "Regress")
    assert (regress["entrypoint"], regress["batch_size"]) == ("REST", 1)
    assert lines[-1]["code"] == "NOT_FOUND"
    assert "123456" not in log.read_text() and "secret" not in log.read_text()


def test_a_full_disk_costs_lines_not_requests(push, tmp_path):
    push(1.0, tmp_path, 1)
    flags = ("--request_log_file=/dev/full", "--request_log_sampling=1")
    with local_server(tmp_path, flags=flags) as server, Client(server.target) as client:
        for _ in range(3):
            assert client.status("default")
        assert server.stop() == 0
        assert server.log().count("No space left on device") == 1


# --- limits


def test_only_this_machine_may_ask_unless_told_otherwise(server):
    listening = {
        # gRPC's sockets speak IPv6, where this is how an IPv4 address is written.
        f"{connection.laddr.ip.removeprefix('::ffff:')}:{connection.laddr.port}"
        for connection in psutil.Process(server.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {server.target, server.rest_url.removeprefix("http://")}
    assert all(address.startswith("127.0.0.1:") for address in listening)


@pytest.fixture(scope="module")
def small(push, tmp_path_factory):
    """Takes 1 MB, one gRPC request at a time and one more in the queue."""
    base_path = tmp_path_factory.mktemp("small")
    push(1.0, base_path, 1)
    flags = (
        "--max_request_mb=1",
        "--grpc_max_threads=1",
        "--max_queued_requests=1",
        "--rest_api_port=-1",
        f"--grpc_socket_path={base_path}/grpc.sock",
        "--grpc_channel_arguments=grpc.max_metadata_size=8192",
        "--drain_seconds=20",
        "--noenable_batching",
        "--noenable_model_warmup",
        "--tensorflow_session_parallelism=1",
    )
    with local_server(base_path, flags=flags) as server:
        assert "warm" not in server.log()
        yield server, base_path / "grpc.sock"


def predict_on(channel: grpc.Channel, signature: str, **inputs: np.ndarray) -> grpc.Future:
    request = protos.PredictRequest()
    request.model_spec.name = "default"
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        tensors.to_proto(value, request.inputs[name])
    call = channel.unary_unary(f"/{PREDICTION_SERVICE}/Predict")
    return call.future(request.SerializeToString(), timeout=60)


def test_requests_too_large_are_refused(small):
    server, _ = small
    x = np.zeros(1 << 18, np.float32)
    with grpc.insecure_channel(server.target) as channel:
        answer = predict_on(channel, "add", x=x, y=x)
        assert answer.exception().code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    spaces = b" " * ((1 << 20) + 1)
    for body, headers in ((spaces, {}), (gzip.compress(spaces), {"Content-Encoding": "gzip"})):
        answer = ask(f"{server.rest_url}/v1/models/default:predict", body, headers=headers)
        assert (answer.code, answer.error) == (413, f"the body is larger than {1 << 20} bytes")


def test_a_unix_socket(small):
    _, path = small
    with grpc.insecure_channel(f"unix:{path}") as channel:
        assert predict_on(channel, "spin", steps=np.int64(1)).exception() is None


def test_more_requests_than_may_wait_are_shed(small):
    server, _ = small
    with grpc.insecure_channel(server.target) as channel:
        answers = [predict_on(channel, "spin", steps=np.int64(20_000)) for _ in range(12)]
        codes = [error.code().name if (error := a.exception()) else "OK" for a in answers]
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
    assert 2 <= codes.count("OK") < 12


def test_a_client_that_says_nothing_holds_up_nobody(small):
    server, _ = small
    host, port = server.rest_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.sendall(b"POST /v1/models/default:predict HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        assert ask(f"{server.rest_url}/healthz").code == 200


# --- draining


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """A base path of `saved_models.Waiting`."""
    from tests.serving import saved_models  # imports TensorFlow

    base_path = tmp_path_factory.mktemp("waiting")
    saved_models.write_waiting(base_path / "1")
    return base_path


def test_sigterm_finishes_what_is_under_way_on_both_ports(waiting, tmp_path):
    flags = ("--rest_api_port=-1", "--noenable_model_warmup")
    with (
        local_server(waiting, flags=flags) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        by_grpc, by_rest = str(tmp_path / "grpc"), str(tmp_path / "rest")
        url = f"{server.rest_url}/v1/models/default:predict"
        answers = []
        body = {"signature_name": "wait", "inputs": by_rest}
        rest = threading.Thread(target=lambda: answers.append(ask(url, body)))
        rest.start()
        call = predict_on(channel, "wait", path=np.array(by_grpc.encode(), object))
        for path in (by_grpc, by_rest):
            wait_until(pathlib.Path(f"{path}.started").exists)
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        watch.cancel()

        def ask_late() -> grpc.RpcError:
            return predict_on(channel, "wait", path=np.array(b"late", object)).exception()

        late = ask_late()
        assert late.code() == grpc.StatusCode.UNAVAILABLE and "shutting down" in late.details()
        refused = ask(url, body)
        assert refused.code == 503 and "shutting down" in refused.error
        for path in (by_grpc, by_rest):
            pathlib.Path(f"{path}.end").touch()
        codes = set()
        while server.process.poll() is None:  # whoever still asks is told to ask another server
            codes.add(ask_late().code().name)
        assert codes <= {"UNAVAILABLE"}
        assert server.process.returncode == 0
        assert call.exception() is None
        rest.join()
        assert (answers[0].code, answers[0].json) == (200, {"outputs": by_rest})
