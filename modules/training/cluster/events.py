"""What happened to a cluster's processes, one JSON object a line."""

from __future__ import annotations

import json
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

Event = dict[str, Any]


class EventLog:
    """Appends events to a file, from any thread.

    A full disk delays lines; it neither loses them nor stops us.
    """

    def __init__(self, path: pathlib.Path, tell: Callable[[Event], None] | None = None):
        self._path, self._tell = path, tell
        self._unwritten: list[str] = []
        self._writing = threading.Lock()

    def add(self, event: str, **fields: Any) -> None:
        """Records `event` with the time (seconds since 1970) and those fields that aren't None."""
        given = {name: value for name, value in fields.items() if value is not None}
        record = {"time": round(time.time(), 3), "event": event, **given}
        self._unwritten.append(json.dumps(record))
        self.flush()
        if self._tell is not None:
            self._tell(record)

    def flush(self) -> None:
        """Writes what couldn't be written before."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        if not self._unwritten:
            return
        text = "".join(line + "\n" for line in self._unwritten)
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("a") as file:
                file.write(text)
        except OSError:
            self._cut(size)
        else:
            self._unwritten.clear()

    def _cut(self, size: int) -> None:
        # Half a line must not stand before its second attempt.
        if self._path.exists():
            with self._path.open("r+b") as file:
                file.truncate(size)


def read_events(path: str | pathlib.Path) -> list[Event]:
    """The events of a `cluster-events.jsonl`, oldest first."""
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
