"""The request log: a sample of the requests, one JSON object a line, never what users sent."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import pathlib
import queue
import random
import threading
from collections.abc import Callable

_WAITING_LINES = 10_000
_CLOSE_SECONDS = 2.0


class RequestLog:
    """Appends to a file from a thread of its own; requests never wait for the disk."""

    def __init__(self, path: str, sampling: float, on_drop: Callable[[], None]):
        """
        Args:
          path: the file. It may be renamed while open; a restart begins a new one.
          sampling: the share of requests written down, 0 to 1.
          on_drop: called for a line that is lost: too many wait for the disk, or it is full.

        Raises:
          OSError: the file can't be opened.
        """
        self._file = pathlib.Path(path).open("ab", buffering=0)  # noqa: SIM115
        self._sampling = sampling
        self._on_drop = on_drop
        self._lines: queue.Queue[dict | None] = queue.Queue(_WAITING_LINES)
        self._writer = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._writer.start()

    def is_sampled(self) -> bool:
        """Draws whether this request is one to write down."""
        return random.random() < self._sampling

    def write(self, **fields: str | int | float) -> None:
        """One line: the time now, and the fields."""
        now = datetime.datetime.now(datetime.timezone.utc)
        try:
            self._lines.put_nowait({"time": now.isoformat(timespec="milliseconds"), **fields})
        except queue.Full:
            self._on_drop()

    def close(self) -> None:
        """Writes what still waits, unless the disk takes too long."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=_CLOSE_SECONDS)
        self._writer.join(_CLOSE_SECONDS)

    def _write(self) -> None:
        complaint = ""
        while (line := self._lines.get()) is not None:
            try:
                self._file.write(json.dumps(line).encode() + b"\n")
            except OSError as error:
                self._on_drop()
                if complaint != str(error):
                    complaint = str(error)
                    logging.error("--request_log_file: %s", complaint)
