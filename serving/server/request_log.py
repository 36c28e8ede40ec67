"""The request log: a sample of the requests, one JSON object a line, never what users sent."""

from __future__ import annotations

import datetime
import json
import pathlib
import queue
import random
import threading
from collections.abc import Callable

_WAITING_LINES = 10_000


class RequestLog:
    """Appends to a file from a thread of its own; requests never wait for the disk."""

    def __init__(self, path: str, sampling: float, on_drop: Callable[[], None]):
        """
        Args:
          path: the file. It may be renamed while open; a restart begins a new one.
          sampling: the share of requests written down, 0 to 1.
          on_drop: called for a line that is lost because too many wait for the disk.

        Raises:
          OSError: the file can't be opened.
        """
        self._file = pathlib.Path(path).open("a")  # noqa: SIM115
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
        """Writes what still waits."""
        self._lines.put(None)
        self._writer.join()
        self._file.close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._file.write(json.dumps(line) + "\n")
            if self._lines.empty():
                self._file.flush()
