"""Versions that come and go under a real server."""

import threading

import grpc
import numpy as np
import pytest

from serving import protos, tensors
from serving.client import Client, ServingError
from serving.local import local_server
from tests.serving.process import wait_until


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
