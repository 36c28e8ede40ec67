"""Draining: requests are let in until the gate closes, and it knows when the last one is out."""

from __future__ import annotations

import threading

import grpc

from serving import errors


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

    def close(self) -> None:
        """Lets nobody in any more."""
        with self._changed:
            self._closed = True

    def wait(self, seconds: float) -> None:
        """Returns when all are out, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside, seconds)
