"""What is read of a source and how: its files, chunks of raw rows, and columns.

The spec's channels, tasks and keys become `Column`s, each one reading of a source column:
`event_columns` for events, `user_columns` for users. A source (`data/sources`) hands over
`File`s and `Chunk`s that have them, or raises `SourceError`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pyarrow as pa

from data.channels import INTERVAL, Channel, IdChannel, Scope, table_setting
from data.dead_letters import DeadLetter
from data.spec import Spec, Task

ORDER = "$order"
"""int64: number of the row's file (in name order) · 2⁴⁰ + its row. Breaks ties of time."""
TARGET = "$target"
"""bool, optional, of a source's raw rows: false for a row that is history, never a target."""
IDENTITY = "$identity"
"""uint64: hash of all of the row's fields; null for a row without a time, which isn't
compared, as a repeated behaviour can't be told from a repeated row there."""


class SourceError(ValueError):
    """Input that can't be used as a whole. The message names the file and the fix."""


@dataclasses.dataclass(frozen=True)
class File:
    """One input file."""

    path: str
    role: Literal["events", "history", "users"]
    number: int
    """Place among the inputs; events without a time come in this order."""
    joined: tuple[str, ...] = ()
    """Side tables that its rows are joined with."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Raw rows of a file, under the file's column names."""

    table: pa.Table
    rows: np.ndarray
    """int64 [n]: line or row number of each."""
    text: bool
    """Everything was text, and is cast by the spec; else types pass through."""
    separator: str = "|"
    """Between the values of a multi-valued text field."""
    dead_letters: tuple[DeadLetter, ...] = ()
    """Rows that could not even be split into fields."""
    problems: tuple[tuple[np.ndarray, str], ...] = ()
    """(bool [n], reason) of rows that the source knows to be malformed."""


Reading = Literal["user", "time", "category", "int", "string", "dense", "label", "oracle"]


@dataclasses.dataclass(frozen=True)
class Column:
    """One reading of a source column. Channels that read it alike share it."""

    name: str
    source: str
    reading: Reading
    use: str
    """What the spec wants it for, for error messages."""
    multi_valued: bool = False
    task: Task | None = None


def id_dtype(spec: Spec, channel: IdChannel) -> Literal["int", "string"]:
    """The type of an id channel's values: its table's `dtype`, int unless given."""
    return table_setting(spec.tables[channel.table_name], "dtype", "int")


def _reading(spec: Spec, channel: Channel) -> Reading:
    return id_dtype(spec, channel) if isinstance(channel, IdChannel) else channel.kind


def channel_column(spec: Spec, channel: Channel) -> str:
    """The channel's column in the event or user table, e.g. `tag:category[]`."""
    multi = "[]" if getattr(channel, "multi_valued", False) else ""
    return f"{channel.source_column}:{_reading(spec, channel)}{multi}"


def event_columns(spec: Spec) -> tuple[Column, ...]:
    """What an event has: user, time, sequence and candidate channels, labels per impression."""
    columns = [
        Column(spec.user, spec.user, "user", "the user's id (spec key `user`)"),
        Column(spec.time, spec.time, "time", "the event's time (spec key `time`)"),
        *_channels(spec, "sequence"),
        *_channels(spec, "candidate"),
        *_labels(spec, "impression"),
    ]
    if spec.source.where is not None:
        domain = spec.source.where.column
        columns.append(Column(f"{domain}:category", domain, "category", "source.where"))
    return _distinct(columns)


def user_columns(spec: Spec) -> tuple[Column, ...]:
    """What a user has: an id, context channels and labels per user."""
    columns = [
        Column(spec.user, spec.user, "user", "the user's id (spec key `user`)"),
        *_channels(spec, "context"),
        *_labels(spec, "user"),
    ]
    return _distinct(columns)


def _distinct(columns: list[Column]) -> tuple[Column, ...]:
    """One of each name, with all uses."""
    distinct: dict[str, Column] = {}
    for column in columns:
        earlier = distinct.get(column.name)
        uses = column.use if earlier is None else f"{earlier.use}, {column.use}"
        distinct[column.name] = dataclasses.replace(column, use=uses)
    return tuple(distinct.values())


def _channels(spec: Spec, scope: Scope) -> list[Column]:
    return [
        Column(
            channel_column(spec, c),
            c.source_column,
            _reading(spec, c),
            f"{scope} channel {c.name!r}",
            getattr(c, "multi_valued", False),
        )
        for c in spec.scope(scope)
        if c.source_column != INTERVAL
    ]


def _labels(spec: Spec, per: str) -> list[Column]:
    columns = []
    for task in (t for t in spec.tasks if t.per == per):
        use = f"task {task.name!r}"
        columns.append(
            Column(task.label_feature, task.label, "label", f"label of {use}", task=task)
        )
        if task.oracle:
            oracle = Column(task.oracle_feature, task.oracle, "oracle", f"oracle of {use}")
            columns.append(oracle)
    return columns


def require_columns(path: str, present: list[str], columns: tuple[Column, ...]) -> None:
    """Raises `SourceError` naming the file, each missing column and what it is read for."""
    missing: dict[str, list[str]] = {}
    for column in columns:
        if column.source not in present:
            missing.setdefault(column.source, []).append(column.use)
    if missing:
        reasons = "; ".join(f"{name!r} ({', '.join(uses)})" for name, uses in missing.items())
        raise SourceError(
            f"{path}: missing column {reasons}. Add it to the file or change the spec."
            f" Columns found: {', '.join(present)}"
        )
