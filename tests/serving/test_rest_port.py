"""The REST port with few threads, and clients that would keep them."""

from __future__ import annotations

import contextlib
import itertools
import socket
import ssl
import threading

import pytest
import trustme

from serving.server import rest_connection, rest_port
from tests.serving.http import ask

THREADS = 2


def app(environ, start_response):
    """Answers with the request's body."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


@pytest.fixture
def start():
    """Starts a port, which else would end with the process only."""
    with contextlib.ExitStack() as stack:

        def start(answer=app, tls: ssl.SSLContext | None = None) -> str:
            port = rest_port.RestPort(
                answer, host="127.0.0.1", port=0, max_threads=THREADS, max_queued=10, tls=tls
            )
            stack.callback(port._server.stop)
            return port.address

        yield start


class Dripping(threading.Thread):
    """Sends bytes one by one until the server has enough of them.

    Attributes:
      answer: what the server said then.
    """

    def __init__(self, address: str, data: bytes):
        super().__init__(daemon=True)
        host, port = address.split(":")
        self._connection = socket.create_connection((host, int(port)))
        self._connection.settimeout(0.1)
        self._data = data
        self.answer = b""

    def run(self) -> None:
        bytes_to_come = itertools.chain(self._data, itertools.repeat(120))
        with self._connection, contextlib.suppress(ConnectionError):
            for byte in bytes_to_come:
                self._connection.sendall(bytes([byte]))
                with contextlib.suppress(TimeoutError):
                    self.answer = self._connection.recv(1000)
                    return


HEADER = b"GET /healthz HTTP/1.1\r\nX: "
BODY = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize("data", [HEADER, BODY], ids=["header", "body"])
def test_clients_that_drip_keep_no_thread(monkeypatch, start, data):
    monkeypatch.setattr(rest_connection, "IDLE_SECONDS", 1)
    address = start()
    drips = [Dripping(address, data) for _ in range(THREADS)]
    for drip in drips:
        drip.start()
    assert ask(f"http://{address}/", b"hello").body == b"hello"
    for drip in drips:
        drip.join(20)
        assert drip.answer.startswith(b"HTTP/1.1 408 ")


def test_clients_that_drip_their_handshake_keep_no_thread(monkeypatch, start):
    monkeypatch.setattr(rest_connection, "IDLE_SECONDS", 1)
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    address = start(tls=context)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    for _ in range(THREADS):
        Dripping(address, hello).start()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    assert ask(f"https://{address}/", b"hello", context=trusting).body == b"hello"


def test_what_comes_gives_a_request_more_time():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = rest_connection.Incoming(ours)
        deadline = connection.deadline
        theirs.sendall(bytes(1_000))
        assert len(connection.read(5_000)) == 1_000
        assert connection.deadline - deadline == pytest.approx(0.01)


def test_a_client_may_send_what_nobody_reads_and_still_hears_the_answer(start):
    def refuse(environ, start_response):
        start_response("403 Forbidden", [("Content-Length", "2"), ("Connection", "close")])
        return [b"no"]

    address = start(refuse)
    for _ in range(20):
        answer = ask(f"http://{address}/", bytes(1 << 21))
        assert (answer.code, answer.body) == (403, b"no")
