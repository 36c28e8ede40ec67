"""KuaiRand (Gao et al., CIKM 2022) in its published CSV format, plain or .gz.

The folder holds `log_standard_*_pure.csv` (all of them are read), `user_features_pure.csv`,
`video_features_basic_pure.csv` (joined to each impression on `video_id`) and optionally
`user_history_before_4_25.parquet`: a user's earlier exposures in order, without times. Those
are history; with `source.history_labels` the first of each video is a training target too, of
whether it was liked and viewed long (a later one says what its own history says already). Nothing
is counted for such a target: a count of the video's other exposures tells a model that knows the
video's whole count the target's own label.

Derived columns: `hour` (of `hourmin`, as text), `watch_ratio` (`play_time_ms` / `duration_ms`; null
where the duration is 0), and what those earlier exposures say of a video: `video_exposures`,
`video_like_share` and `video_long_view_share` (null for a video without any, and for all where that
file isn't there). A video's exposures in the history are before 25 April but for those that a user
had just then, so it goes with logs that begin there; and what counts a history's own events is no
channel of that history.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from data.casting import integers, single_array
from data.columns import (
    TARGET,
    Chunk,
    File,
    SourceError,
    event_columns,
    require_columns,
    user_columns,
)
from data.sources import delimited
from data.sources.joining import left_join
from data.spec import Spec

HISTORY = "user_history_before_4_25.parquet"
DERIVED = {"hour": "hourmin", "watch_ratio": "play_time_ms"}
COUNTED = ("video_exposures", "video_like_share", "video_long_view_share")
TAG_SEPARATOR = ","


def find(spec: Spec, data_root: str) -> tuple[File, ...]:
    """The folder's files. Raises `SourceError` for a missing file or column."""
    folder = pathlib.Path(data_root, spec.source.path)
    logs = _matching(folder, "log_standard_*_pure")
    users = _matching(folder, "user_features_pure")
    videos = _matching(folder, "video_features_basic_pure")
    for found, name in (
        (logs, "log_standard_*_pure.csv"),
        (users, "user_features_pure.csv"),
        (videos, "video_features_basic_pure.csv"),
    ):
        if not found:
            raise SourceError(f"{folder}: no {name} or {name}.gz: is this KuaiRand's folder?")
    video_columns = delimited.header(videos[0])
    for log in logs:
        present = [*delimited.header(log), *video_columns]
        derived = [name for name, source in DERIVED.items() if source in present]
        require_columns(log, [*present, *derived, *COUNTED], event_columns(spec))
    for channel in spec.scope("sequence"):
        if channel.source_column in COUNTED:
            raise SourceError(
                f"{folder}: sequence channel {channel.name!r} reads {channel.source_column}, which"
                " counts the history's own events; it is for candidates"
            )
    require_columns(users[0], delimited.header(users[0]), user_columns(spec))

    files = [File(users[0], "users", 0)]
    history = [str(folder / HISTORY)] if (folder / HISTORY).exists() else []
    files += [File(path, "history", 1, (logs[0], videos[0])) for path in history]
    files += [File(log, "events", 2 + i, (videos[0], *history)) for i, log in enumerate(logs)]
    return tuple(files)


def read(file: File, spec: Spec) -> Iterator[Chunk]:
    """The rows of one file, joined with their videos."""
    if file.role == "users":
        yield from delimited.read_csv(file.path, TAG_SEPARATOR)
    elif file.role == "history":
        yield from _read_history(file, spec)
    else:
        for chunk in delimited.read_csv(file.path, TAG_SEPARATOR):
            table, malformed = _derive(chunk.table)
            table = left_join(table, _videos(file.joined[0]), "video_id")
            table = left_join(table, _counts(*file.joined[1:]), "video_id")
            problems = (*chunk.problems, *malformed)
            yield dataclasses.replace(chunk, table=table, problems=problems)


def _matching(folder: pathlib.Path, pattern: str) -> list[str]:
    return sorted(str(p) for end in (".csv", ".csv.gz") for p in folder.glob(pattern + end))


def _derive(table: pa.Table) -> tuple[pa.Table, list[tuple[np.ndarray, str]]]:
    numbers, problems = {}, []
    for name in ("hourmin", "play_time_ms", "duration_ms"):
        if name in table.column_names:
            numbers[name], unreadable = integers(single_array(table[name]))
            problems.append((unreadable, f"{name}: not an integer"))
    if "hourmin" in numbers:
        hour = pc.divide(numbers["hourmin"], 100).cast(pa.string())
        table = table.append_column("hour", hour)
    if "play_time_ms" in numbers and "duration_ms" in numbers:
        duration = numbers["duration_ms"].cast(pa.float64())
        duration = pc.if_else(pc.equal(duration, 0), None, duration)
        ratio = pc.divide(numbers["play_time_ms"].cast(pa.float64()), duration)
        table = table.append_column("watch_ratio", ratio)
    return table, problems


@functools.lru_cache(maxsize=1)
def _videos(path: str) -> pa.Table:
    """Kept, as every chunk of a worker is joined with it."""
    return pa.concat_tables([chunk.table for chunk in delimited.read_csv(path)])


@functools.lru_cache(maxsize=1)
def _counts(history: str | None = None) -> pa.Table:
    """`COUNTED` of each video that the history's exposures hold."""
    names = ["video_id", *COUNTED]
    parts = []
    for batch in _history_batches(history) if history is not None else ():
        user, video = _exposures(batch, "watch_seq")
        liked, viewed = (
            _member(user, video, batch, name) for name in ("like_seq", "long_watch_seq")
        )
        parts.append(pa.table([video, np.ones(len(video)), liked, viewed], names))
    if not parts:
        return pa.table({name: pa.array([], pa.string()) for name in names})
    found = pa.concat_tables(parts).group_by("video_id")
    found = found.aggregate([(COUNTED[0], "count"), *((name, "mean") for name in COUNTED[1:])])
    order = ["video_id", f"{COUNTED[0]}_count", *(f"{name}_mean" for name in COUNTED[1:])]
    return pa.table([found[name].cast(pa.string()) for name in order], names)


def _read_history(file: File, spec: Spec) -> Iterator[Chunk]:
    """`is_like` and `long_view` by membership; what history doesn't tell stays null."""
    log, videos = file.joined
    other = [*delimited.header(log), *DERIVED, *COUNTED]
    first = 1
    for batch in _history_batches(file.path):
        user, video = _exposures(batch, "watch_seq")
        known = {
            "user_id": batch["user_id"].take(pa.array(user)).cast(pa.string()),
            "video_id": pa.array(video).cast(pa.string()),
            "is_like": _text(_member(user, video, batch, "like_seq")),
            "long_view": _text(_member(user, video, batch, "long_watch_seq")),
        }
        nulls = pa.nulls(len(video), pa.string())
        table = pa.table({**dict.fromkeys(other, nulls), **known})
        table = left_join(table, _videos(videos), "video_id")
        is_target = np.zeros(len(video), bool)
        if spec.source.history_labels:
            is_target[_first_of_each(user, video)] = True
        table = table.append_column(TARGET, pa.array(is_target))
        yield Chunk(table, np.arange(first, first + len(video)), True, TAG_SEPARATOR)
        first += len(video)


def _history_batches(path: str) -> Iterator[pa.RecordBatch]:
    columns = ["user_id", "watch_seq", "like_seq", "long_watch_seq"]
    return pyarrow.parquet.ParquetFile(path).iter_batches(columns=columns)


def _exposures(batch: pa.RecordBatch, column: str) -> tuple[np.ndarray, np.ndarray]:
    lists = batch[column]
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    user = np.repeat(np.arange(len(lists)), lengths)
    return user, lists.flatten().to_numpy()


def _member(user: np.ndarray, video: np.ndarray, batch: pa.RecordBatch, column: str) -> np.ndarray:
    """int8 [exposures]: whether the user's list of that name has the video."""
    others, members = _exposures(batch, column)
    return np.isin(_pairs(user, video), _pairs(others, members)).astype(np.int8)


def _first_of_each(user: np.ndarray, video: np.ndarray) -> np.ndarray:
    """int64 [pairs]: where each user first has each video."""
    return np.unique(_pairs(user, video), return_index=True)[1]


def _pairs(user: np.ndarray, video: np.ndarray) -> np.ndarray:
    return (user << 40) + video


def _text(values: np.ndarray) -> pa.Array:
    return pa.array(values).cast(pa.string())
