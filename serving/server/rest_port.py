"""The REST port: cheroot's threaded HTTP server around `rest.RestApp`."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from typing import Any

import cheroot.ssl
from cheroot import makefile, wsgi

from serving.server import rest_connection

_MAX_HEADER_BYTES = 64 << 10


class RestPort:
    """Answers until the process ends.

    Attributes:
      address: `host:port`, with the port the system gave if 0 was asked for.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        host: str,
        port: int,
        max_threads: int,
        max_queued: int,
        tls: ssl.SSLContext | None = None,
    ):
        """Binds the port and answers from then on.

        Args:
          app: a WSGI application.
          host: the interface to listen on.
          port: 0 lets the system choose.
          max_threads: requests answered at the same time.
          max_queued: connections that may wait for one of them; more get 503.
          tls: plain HTTP unless given.

        Raises:
          OSError: the port can't be bound.
        """
        self._server = wsgi.Server(
            (host, port),
            app,
            numthreads=max_threads,
            server_name="",
            request_queue_size=128,
            timeout=rest_connection.IDLE_SECONDS,
            # A connection is in the queue until an idle thread has woken to take it.
            accepted_queue_size=max_threads + max_queued,
            accepted_queue_timeout=0,
        )
        self._server.max_request_header_size = _MAX_HEADER_BYTES
        self._server.ConnectionClass = rest_connection.Connection
        setattr(self._server, "error_log", _log)  # noqa: B010  (a hook, typed as a method)
        if tls:
            self._server.ssl_adapter = _Tls(tls)
        try:
            self._server.prepare()
        except OSError as error:
            raise OSError(f"can't listen on {host}:{port}: {error}") from None
        self.address = f"{host}:{self._server.bind_addr[1]}"
        threading.Thread(target=self._server.serve, name="rest", daemon=True).start()


class _Tls(cheroot.ssl.Adapter):
    """Leaves the handshake to the thread that reads the request.

    cheroot's own adapter makes it where connections are accepted, and there one client that
    says nothing holds up all others.
    """

    def __init__(self, context: ssl.SSLContext):
        self.context = context

    def bind(self, sock: Any) -> Any:
        return sock

    def wrap(self, sock: Any) -> tuple[ssl.SSLSocket, dict[str, str]]:
        wrapped = self.context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        return wrapped, self.get_environ()

    def get_environ(self) -> dict[str, str]:
        return {"wsgi.url_scheme": "https"}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:
        return makefile.MakeFile(sock, mode, bufsize)


def _log(text: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
    """What goes wrong with a connection is the client's affair; our own errors are logged."""
    logging.log(level if level >= logging.ERROR else logging.DEBUG, text, exc_info=traceback)
