"""What happened in a cluster, one JSON object a line."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

from modules.training.cluster.lines import Lines

Event = dict[str, Any]
CLUSTER_EVENTS = "cluster-events.jsonl"
"""The supervisor's: what happened to processes."""
TRAINING_EVENTS = "training-events.jsonl"
"""The chief's: what training did, and saw."""


class EventLog:
    """Appends events to a file, from any thread; a full disk delays them (`Lines`)."""

    def __init__(self, path: pathlib.Path, tell: Callable[[Event], None] | None = None):
        self._lines, self._tell = Lines(path), tell

    def add(self, event: str, **fields: Any) -> None:
        """Records `event` with the time (seconds since 1970) and those fields that aren't None."""
        given = {name: value for name, value in fields.items() if value is not None}
        record = {"time": round(time.time(), 3), "event": event, **given}
        self._lines.add(json.dumps(record))
        if self._tell is not None:
            self._tell(record)

    def flush(self) -> None:
        """Writes what couldn't be written before."""
        self._lines.flush()


def read_events(path: str | pathlib.Path) -> list[Event]:
    """The events of a file, oldest first; not half a line at its end."""
    text = pathlib.Path(path).read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
