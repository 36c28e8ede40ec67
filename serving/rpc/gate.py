"""Draining: requests are let in until the gate closes, and it knows when the last one is out."""

from __future__ import annotations

import threading
import time

import grpc

from serving import errors

_FLUSH_SECONDS = 1.0
"""For answers on their way out."""


class Gate:
    """`with gate:` around each request. Thread-safe."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        """Raises ServingError, UNAVAILABLE, once the gate is closed."""
        with self._changed:
            if self._closed:
                raise errors.ServingError(
                    grpc.StatusCode.UNAVAILABLE, "the server is shutting down; ask another one"
                )
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed and not self._inside:
                self._changed.notify_all()

    def drain(self, seconds: float) -> None:
        """Lets nobody in any more; returns when all are out, or after so many seconds.

        The port stays open until the process ends: gRPC's own `stop` answers what arrives while
        it stops with CANCELLED, and that no client tries again.
        """
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside, seconds)
        time.sleep(_FLUSH_SECONDS)
