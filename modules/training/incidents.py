"""What went wrong in a training run, and what it cost, from the events that it wrote."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from modules.training.cluster.events import (
    CLUSTER_EVENTS,
    TRAINING_EVENTS,
    Event,
    read_events,
)


@dataclasses.dataclass(frozen=True)
class Incident:
    """Args:
    seconds: since the run's first event.
    what: in words.
    out: seconds until what was lost was back; None where nothing had to come back.
    """

    seconds: float
    what: str
    out: float | None = None


@dataclasses.dataclass(frozen=True)
class Incidents:
    """All that went wrong, and its sums.

    Attributes:
      restarts: of processes.
      lost_shards: times that a shard of the sparse tier had to be waited for.
      restored_shards: of these, the times that it came back empty and was restored.
      checkpoints_failed, checkpoints_skipped: not written; damaged and set aside.
      steps_repeated: done, and done again from a checkpoint; as far as they were recorded.
      seconds_lost: in which nothing was trained: no trainer was ready, a shard was away, or
        steps stood still.
    """

    incidents: tuple[Incident, ...]
    restarts: int
    lost_shards: int
    restored_shards: int
    checkpoints_failed: int
    checkpoints_skipped: int
    steps_repeated: int
    seconds_lost: float

    @classmethod
    def of(cls, events: Sequence[Event]) -> Incidents:
        """From the events of cluster and trainer (`cluster-events.jsonl`,
        `training-events.jsonl`)."""
        events = sorted(events, key=lambda event: event["time"])
        start = events[0]["time"] if events else 0.0

        def count(name: str) -> int:
            return sum(event["event"] == name for event in events)

        found = [
            Incident(round(event["time"] - start, 3), *_TOLD[event["event"]](event))
            for event in events
            if event["event"] in _TOLD
        ]
        return cls(
            tuple(found),
            restarts=count("restart"),
            lost_shards=count("shard_lost"),
            restored_shards=sum(e["restored"] for e in events if e["event"] == "shard_back"),
            checkpoints_failed=count("checkpoint_failed"),
            checkpoints_skipped=count("checkpoint_skipped"),
            steps_repeated=sum(e.get("repeated", 0) for e in events if e["event"] == "training"),
            seconds_lost=round(_length_of_union(_still(events)), 1),
        )


def read_incidents(folder: pathlib.Path) -> Incidents:
    """From the events in a Trainer's `model_run` artifact, as far as there are any."""
    paths = [folder / name for name in (CLUSTER_EVENTS, TRAINING_EVENTS)]
    return Incidents.of([e for path in paths if path.exists() for e in read_events(path)])


def _process(event: Event) -> str:
    return f"{event['role']} {event['index']}"


def _death(event: Event) -> tuple[str]:
    how = f"by {event['signal']}" if "signal" in event else f"with exit code {event['exit_code']}"
    return (f"{_process(event)} ended {how}",)


def _back(event: Event) -> tuple[str, float]:
    how = "restored from the checkpoint" if event["restored"] else "with its rows"
    return f"shard {event['shard']} is back, {how}", event["seconds"]


_TOLD: dict[str, Callable[[Event], tuple]] = {
    "death": _death,
    "preempted": lambda e: (f"{_process(e)} was told to stop, and saved",),
    "restart": lambda e: (f"{_process(e)} was started again", e.get("seconds_out")),
    "shard_lost": lambda e: (f"shard {e['shard']} of the tables was lost",),
    "shard_back": _back,
    "resumed": lambda e: (f"went on from step {e['step']}",),
    "checkpoint_failed": lambda e: (f"checkpoint of step {e['step']} failed: {e['reason']}",),
    "checkpoint_skipped": lambda e: (f"checkpoint of step {e['step']} skipped: {e['reason']}",),
    "stalled": lambda e: (f"stood still at step {e['step']}", e["seconds"]),
}


def _still(events: Sequence[Event]) -> list[tuple[float, float]]:
    """Intervals in which nothing was trained."""
    found = []
    down: float | None = None
    for event in events:
        name, time = event["event"], event["time"]
        if name in ("death", "preempted") and event["role"] == "chief" and down is None:
            down = time
        elif name == "training" and down is not None:
            found.append((down, time))
            down = None
        elif name in ("shard_back", "stalled"):
            found.append((time - event["seconds"], time))
    return found


def _length_of_union(intervals: list[tuple[float, float]]) -> float:
    length, end = 0.0, float("-inf")
    for low, high in sorted(intervals):
        length += max(0.0, high - max(low, end))
        end = max(end, high)
    return length
