"""One connection of the REST port: it gets so long for a request, and is closed with care."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from cheroot import makefile, server

IDLE_SECONDS = 10
"""For a request to begin and have its header read, and for each write of its answer."""
_BYTES_PER_SECOND = 100_000
"""Each so many bytes of a request give it another second."""
_LINGER_SECONDS = 2.0


class Connection(server.HTTPConnection):
    """What cheroot hears and answers requests on.

    A request has `IDLE_SECONDS`, and a second more for each 100 kB that came, as with
    mod_reqtimeout of Apache: who sends a byte now and then doesn't keep a thread.
    """

    def __init__(self, server: Any, sock: socket.socket, makefile: Any):
        super().__init__(server, sock, makefile)
        self._incoming = Incoming(sock)
        self.rfile = _Reader(self._incoming)
        self.leaves_unread = False

    def communicate(self) -> bool:
        """Hears and answers one request; whether another one may follow."""
        self._incoming.begin()
        stays_open = super().communicate()
        if self.leaves_unread:
            self._linger()
        return stays_open

    def _linger(self) -> None:
        """Waits until the client had the answer, while there is time.

        Closed with bytes unread, TCP resets the connection, and the answer may be lost with it
        (RFC 9112, 9.6).
        """
        end = min(time.monotonic() + _LINGER_SECONDS, self._incoming.deadline)
        with contextlib.suppress(OSError, ValueError):
            self.socket.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv(1 << 16):
                    return


class Request(server.HTTPRequest):
    """An HTTP request that ends its connection if its application says so, or cheroot refuses it.

    cheroot alone would take what is left of the request for the next one, or read it to its end.
    """

    def send_headers(self) -> None:
        if (b"Connection", b"close") in self.outheaders:
            self.close_connection = self.conn.leaves_unread = True
        super().send_headers()

    def simple_response(self, status: str, msg: str = "") -> None:
        self.close_connection = self.conn.leaves_unread = True
        super().simple_response(status, msg)


Connection.RequestHandlerClass = Request


class Incoming(socket.SocketIO):
    """A socket as a file to read, until a deadline that each byte puts off a little.

    Attributes:
      deadline: a `time.monotonic()` moment.
    """

    def __init__(self, sock: socket.socket):
        super().__init__(sock, "rb")
        self._socket = sock
        self.begin()

    def begin(self) -> None:
        """The next request has its time from now on."""
        self.deadline = time.monotonic() + IDLE_SECONDS

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")  # by these words cheroot knows to answer 408
        self._socket.settimeout(left)
        try:
            count = super().readinto(buffer)
        finally:
            self._socket.settimeout(IDLE_SECONDS)
        self.deadline += (count or 0) / _BYTES_PER_SECOND
        return count


class _Reader(makefile.StreamReader):
    """cheroot's reader of a connection, of a file instead of a socket."""

    def __init__(self, raw: socket.SocketIO):
        super(makefile.StreamReader, self).__init__(raw)
        self.bytes_read = 0
