"""docs/contracts.md's instance in slow, obvious Python: one user, one event at a time."""

from __future__ import annotations

import math

import pyarrow as pa

from data.instances import is_eval_user
from data.spec import Spec

SEQUENCE = ("item", "shop", "place", "tags", "price", "click")
CANDIDATE = ("item", "tags", "price")
MISSING = {"item": -1, "shop": b"", "place": b"", "price": math.nan, "click": b"", "city": b""}
LABELS = ("click", "stars", "spend")


def reference_instances(rows: list[dict], users: list[dict], spec: Spec) -> list[dict]:
    """Instances of `tests.data.small`'s spec, by user id and window."""
    profiles = {user["user_id"]: user for user in users}
    labelled = {name for name, user in profiles.items() if user.get("level") is not None}
    names = {row["user_id"] for row in rows} | labelled
    instances = []
    for name in sorted(names):
        own = [row | {"$order": i} for i, row in enumerate(rows) if row["user_id"] == name]
        own.sort(key=lambda r: (r.get("time_ms") is not None, r.get("time_ms") or 0, r["$order"]))
        instances += _windows(name, own, profiles.get(name), spec)
    return instances


def _windows(name: str, events: list[dict], profile: dict | None, spec: Spec) -> list[dict]:
    held_out = bool(is_eval_user(pa.array([name]), spec.split.eval_fraction)[0])
    size, overlap = spec.sequence.window, spec.sequence.max_length
    starts = [0]
    while starts[-1] + size < len(events):
        starts.append(starts[-1] + size - overlap)

    targets = []
    for event in events:
        if any(event.get(label) is not None for label in LABELS):
            seen = sum(_strictly_before(other, event) for other in events)
            held = held_out if spec.split.by == "user" else not _trainable(event, spec)
            targets.append({"event": event, "seen": seen, "split": int(held)})
    if profile is not None and profile.get("level") is not None:
        trainable = sum(_trainable(e, spec) for e in events)
        seen = len(events) if held_out else trainable
        targets.append({"event": None, "seen": seen, "split": int(held_out)})

    instances = []
    for number, start in enumerate(starts):
        inside = events[start : start + size]
        # The one window that holds the newest `overlap` visible events.
        here = [t for t in targets if _window_of(t["seen"], starts, size) == number]
        trainable = [e for e in inside if _trainable(e, spec)]
        if spec.split.by == "user" and held_out:
            trainable = []
        instance = {
            "user_id": [name.encode()],
            "user_activity": [sum(_trainable(e, spec) for e in events)],
            "sequence_length": [len(inside)],
            "window_last": [int(start == starts[-1])],
            "train_length": [len(trainable)],
            "target_position": [t["seen"] - start for t in here],
            "target_split": [t["split"] for t in here],
            "target_per_user": [int(t["event"] is None) for t in here],
        }
        for channel in SEQUENCE:
            instance |= _feature("sequence", channel, [e.get(channel) for e in inside])
        instance["sequence_gap"] = [
            _seconds(events[start + i - 1] if start + i else None, e) for i, e in enumerate(inside)
        ]
        for channel in CANDIDATE:
            values = [t["event"].get(channel) if t["event"] else None for t in here]
            instance |= _feature("candidate", channel, values)
        instance["candidate_gap"] = [
            _seconds(events[t["seen"] - 1] if t["seen"] else None, t["event"]) for t in here
        ]
        instance |= _feature("context", "city", [(profile or {}).get("city")])
        instance["context_age"] = [_number((profile or {}).get("age"))]
        for label in LABELS:
            values = [t["event"].get(label) if t["event"] else None for t in here]
            instance[f"label_{label}"] = [_label(v) for v in values]
        instance["oracle_click"] = [
            _number(t["event"].get("click_p") if t["event"] else None) for t in here
        ]
        instance["label_vip"] = [
            math.nan if t["event"] else float(profile["level"] in ("gold", "black")) for t in here
        ]
        instances.append(instance)
    return instances


def _strictly_before(other: dict, event: dict) -> bool:
    if event.get("time_ms") is None:
        return other.get("time_ms") is None and other["$order"] < event["$order"]
    return other.get("time_ms") is None or other["time_ms"] < event["time_ms"]


def _trainable(event: dict, spec: Spec) -> bool:
    if spec.split.by == "user" or event.get("time_ms") is None:
        return True
    return event["time_ms"] < spec.split.at_ms


def _window_of(seen: int, starts: list[int], size: int) -> int:
    return next(i for i, start in enumerate(starts) if seen <= start + size)


def _seconds(earlier: dict | None, event: dict | None) -> float:
    if not earlier or not event or earlier.get("time_ms") is None or event.get("time_ms") is None:
        return math.nan
    return (event["time_ms"] - earlier["time_ms"]) / 1000


def _feature(scope: str, channel: str, values: list) -> dict[str, list]:
    name = f"{scope}_{channel}"
    if channel == "tags":
        lists = [[v.encode() for v in value or () if v] for value in values]
        return {name: sum(lists, []), f"{name}_count": [len(one) for one in lists]}
    encoded = [v.encode() if isinstance(v, str) else v for v in values]
    return {name: [MISSING[channel] if v is None else v for v in encoded]}


def _label(value: str | float | None) -> float:
    classes = {"a": 0.0, "b": 1.0, "c": 2.0, "0": 0.0, "1": 1.0}
    return classes[value] if isinstance(value, str) else _number(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
