"""Ten thousand requests that no honest client sends: each is answered, and nothing else happens."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import select
import socket

import grpc
import numpy as np
import portpicker
import psutil
import pytest

from serving import protos, tensors
from serving.local import local_server
from tests.serving import fuzz
from tests.serving.process import wait_until

CALLS, PAGES = 8_000, 2_000
MEGABYTE = 1 << 20
LARGEST_MB = 32
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
LASTING = 128 * MEGABYTE
"""What allocators may keep for themselves; giant requests, kept, would be hundreds."""


@pytest.fixture(scope="module")
def running(push, tmp_path_factory):
    base_path = tmp_path_factory.mktemp("users")
    push(1.0, base_path, 7)
    half_written = base_path / "8"
    half_written.mkdir()
    (half_written / "saved_model.pb.partial").write_bytes(b"\x08")
    rest_port = portpicker.pick_unused_port()
    flags = (f"--rest_api_port={rest_port}", f"--max_request_mb={LARGEST_MB}")
    with local_server(base_path, fuzz.MODEL, flags=flags) as server:
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


def _fuzz(server, rest_port: int, share: float, chance: random.Random) -> None:
    """A share of the requests, over both ports, and the largest ones."""
    largest_call, largest_page = fuzz.giants()
    calls = (fuzz.CALLS[n % len(fuzz.CALLS)](chance) for n in range(int(CALLS * share)))
    with grpc.insecure_channel(server.target, options=_UNLIMITED) as channel:
        for call in itertools.chain([largest_call], calls):
            code, text = _ask(channel, call)
            assert code in call.codes, f"{call.kind}: {code}: {text:.500} for {call.body[:300]!r}"
            if code != "OK":
                _check_message(call.kind, text)
    connection = http.client.HTTPConnection("127.0.0.1", rest_port, timeout=30)
    pages = (fuzz.PAGES[n % len(fuzz.PAGES)](chance) for n in range(int(PAGES * share)))
    for page in itertools.chain([largest_page], pages):
        _check_page(connection, page)
    connection.close()


def _check_page(connection: http.client.HTTPConnection, page: fuzz.Page) -> None:
    connection.request(page.method, page.path, page.body)
    response = connection.getresponse()
    content = response.read()
    case = f"{page.kind}: {page.method} {page.path:.80} {page.body[:200]!r}"
    assert response.status in page.statuses, f"{case}: {response.status} {content[:300]!r}"
    if response.status != 200:
        _check_message(case, json.loads(content)["error"])
    if response.getheader("Connection", "").lower() == "close":
        connection.close()


def _pour(connection: socket.socket, stream: fuzz.Stream) -> None:
    """Sends until the server answers, or had several times what it may hold."""
    connection.sendall(stream.head)
    for _ in range(4 * LARGEST_MB * MEGABYTE // len(stream.more)):
        if select.select([connection], [], [], 0)[0]:
            return
        connection.sendall(stream.more)


@pytest.mark.parametrize("stream", fuzz.STREAMS, ids=lambda stream: stream.kind)
def test_requests_without_end_are_answered_and_nothing_of_them_kept(running, stream):
    server, rest_port = running
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with socket.create_connection(("127.0.0.1", rest_port), timeout=30) as connection:
        _pour(connection, stream)
        assert process.memory_info().rss < before + LASTING
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status in stream.statuses
    assert "Traceback" not in server.log()


@pytest.mark.slow
def test_every_request_gets_the_right_code_and_nothing_lasts(running):
    server, rest_port = running
    process = psutil.Process(server.process.pid)
    chance = random.Random(4)
    _fuzz(server, rest_port, 0.2, chance)
    before, threads = process.memory_info().rss, process.num_threads()
    _fuzz(server, rest_port, 0.8, chance)
    wait_until(lambda: process.memory_info().rss < before + LASTING)
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
