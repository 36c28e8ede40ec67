"""Ten thousand requests that no honest client sends: each is answered, and nothing else happens."""

from __future__ import annotations

import http.client
import json
import random

import grpc
import numpy as np
import portpicker
import psutil
import pytest

from serving import protos, tensors
from serving.local import local_server
from tests.serving import fuzz

CALLS, PAGES = 8_000, 2_000
MEGABYTE = 1 << 20
LASTING = 48 * MEGABYTE
"""What allocators may keep for themselves; giant requests, kept, would be hundreds."""


@pytest.fixture(scope="module")
def running(push, tmp_path_factory):
    base_path = tmp_path_factory.mktemp("users")
    push(1.0, base_path, 7)
    half_written = base_path / "8"
    half_written.mkdir()
    (half_written / "saved_model.pb.partial").write_bytes(b"\x08")
    rest_port = portpicker.pick_unused_port()
    with local_server(base_path, fuzz.MODEL, flags=(f"--rest_api_port={rest_port}",)) as server:
        yield server, rest_port


def _ask(channel: grpc.Channel, call: fuzz.Call) -> tuple[str, str]:
    try:
        channel.unary_unary(call.method)(call.body, timeout=30)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def _check_message(kind: str, text: str) -> None:
    assert text.strip(), f"{kind}: no message"
    assert "Traceback" not in text and ".py" not in text, f"{kind}: {text}"
    assert len(text) < 20_000, f"{kind}: {len(text)} characters"


def _fuzz_grpc(target: str, count: int, chance: random.Random) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options=options) as channel:
        for number in range(count):
            call = fuzz.CALLS[number % len(fuzz.CALLS)](chance)
            code, text = _ask(channel, call)
            assert code in call.codes, f"{call.kind}: {code}: {text:.500} for {call.body[:300]!r}"
            if code != "OK":
                _check_message(call.kind, text)


def _fuzz_rest(port: int, count: int, chance: random.Random) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(count):
        page = fuzz.PAGES[number % len(fuzz.PAGES)](chance)
        connection.request(page.method, page.path, page.body)
        response = connection.getresponse()
        content = response.read()
        case = f"{page.kind}: {page.method} {page.path:.80} {page.body[:200]!r}"
        assert response.status in page.statuses, f"{case}: {response.status} {content[:300]!r}"
        if response.status != 200:
            _check_message(case, json.loads(content)["error"])
        if response.getheader("Connection", "").lower() == "close":
            connection.close()
    connection.close()


@pytest.mark.slow
def test_every_request_gets_the_right_code_and_nothing_lasts(running):
    server, rest_port = running
    process = psutil.Process(server.process.pid)
    chance = random.Random(4)
    _fuzz_grpc(server.target, CALLS // 5, chance)
    _fuzz_rest(rest_port, PAGES // 5, chance)
    before, threads = process.memory_info().rss, process.num_threads()
    _fuzz_grpc(server.target, CALLS - CALLS // 5, chance)
    _fuzz_rest(rest_port, PAGES - PAGES // 5, chance)
    assert process.memory_info().rss < before + LASTING
    assert process.num_threads() <= threads + 2
    with grpc.insecure_channel(server.target) as channel:
        body = fuzz.predict_request(x=np.float32([1]), y=np.float32([2])).SerializeToString()
        answer = protos.PredictResponse.FromString(
            channel.unary_unary(f"{fuzz.PREDICTION}/Predict")(body, timeout=30)
        )
        assert tensors.to_array(answer.outputs["sum"]).tolist() == [3.0]
        # The half-written version was never taken for one.
        status = protos.GetModelStatusRequest()
        status.model_spec.name = fuzz.MODEL
        states = protos.GetModelStatusResponse.FromString(
            channel.unary_unary(f"{fuzz.MODELS}/GetModelStatus")(status.SerializeToString())
        )
        assert [s.version for s in states.model_version_status] == [7]
    assert "Traceback" not in server.log()
