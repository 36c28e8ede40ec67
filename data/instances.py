"""Events of whole users -> instances: windows of history with their targets.

`build_instances` is a pure function of two Arrow tables, vectorised over all users at once;
docs/contracts.md says what an instance holds. The rule against leakage lives here, in
`_visible`: a target sees the events strictly before its time, and nothing else.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data.casting import is_null, single_array
from data.channels import INTERVAL, Channel, DenseChannel
from data.columns import ORDER, channel_column
from data.spec import Spec, Task

TRAIN, EVAL = 0, 1


def build_instances(events: pa.Table, users: pa.Table, spec: Spec) -> pa.RecordBatch:
    """All instances of a set of users.

    Args:
      events: table of `events.conform`, every event of each user; duplicates are gone.
      users: table of `events.conform`, one row a user; may have none.
      spec: names the channels, tasks, windows and splits.

    Returns:
      One row an instance, ordered by user and window; every column a list of int64, float32
      or binary, as a `tf.Example` wants it.
    """
    timeline = _Timeline.of(events, users, spec)
    windows = _Windows.of(timeline, spec)
    targets = _Targets.of(timeline, windows, users, spec)
    user = windows.user

    columns: dict[str, pa.Array] = {
        "user_id": _single(timeline.user_ids.take(pa.array(user))),
        "user_activity": _single(pa.array(timeline.trainable_per_user()[user])),
        "sequence_length": _single(pa.array(windows.length)),
        "window_last": _single(pa.array(windows.last.astype(np.int64))),
        "train_length": _single(pa.array(windows.train_length)),
    }
    inside = _ranges(windows.start, windows.length)
    for channel in spec.scope("sequence"):
        values = timeline.sequence_values(channel, inside)
        columns |= _channel_features(channel, values, windows.length)
    context_row = pa.array(timeline.user_row[user], mask=timeline.user_row[user] < 0)
    for channel in spec.scope("context"):
        values = single_array(users[channel_column(spec, channel)]).take(context_row)
        columns |= _channel_features(channel, values, np.ones(len(user), np.int64))
    columns["target_position"] = _lists(pa.array(targets.position), targets.count)
    columns["target_split"] = _lists(pa.array(targets.split), targets.count)
    columns["target_per_user"] = _lists(
        pa.array((targets.event < 0).astype(np.int64)), targets.count
    )
    for channel in spec.scope("candidate"):
        values = targets.candidate_values(channel, timeline)
        columns |= _channel_features(channel, values, targets.count)
    for task in spec.tasks:
        columns[task.label_feature] = _lists(
            targets.labels(task, task.label_feature, timeline, users), targets.count
        )
        if task.oracle:
            columns[task.oracle_feature] = _lists(
                targets.labels(task, task.oracle_feature, timeline, users), targets.count
            )
    return pa.RecordBatch.from_pydict(columns)


def file_split(instances: pa.RecordBatch) -> np.ndarray:
    """bool [N]: the instance stands in file split `eval`, as it holds an eval target."""
    lists = instances["target_split"]
    row = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy())
    held = np.bincount(row, weights=lists.flatten().to_numpy(), minlength=len(lists))
    return held > 0


def user_hash(user_ids: pa.Array) -> np.ndarray:
    """uint64 [n]: SipHash of the ids' text; the same on every run, platform and source."""
    return pd.util.hash_array(user_ids.to_numpy(zero_copy_only=False), categorize=False)


def is_eval_user(user_ids: pa.Array, fraction: float) -> np.ndarray:
    """bool [n]: the user belongs to the `fraction` whose labels are held out."""
    return user_hash(user_ids) < np.uint64(int(fraction * 2.0**64))


@dataclasses.dataclass(frozen=True)
class _Timeline:
    """All users' events in order: by user, events without a time first, time, order."""

    spec: Spec
    events: pa.Table
    """The event table, as it came."""
    order: np.ndarray
    """Row of the event table of each event of the timeline."""
    user_ids: pa.Array
    """Every user, sorted: with events, or with a label of a per-user task."""
    user_row: np.ndarray
    """Row in the user table, -1 for none."""
    held_out: np.ndarray
    """bool per user: `split.eval_fraction`'s."""
    first: np.ndarray
    """Each user's first event; one entry more than users."""
    user: np.ndarray
    """User of each event."""
    time: np.ndarray
    timed: np.ndarray

    @classmethod
    def of(cls, events: pa.Table, users: pa.Table, spec: Spec) -> _Timeline:
        event_users = single_array(events[spec.user])
        profiles = single_array(users[spec.user])
        labelled = profiles.filter(pa.array(_labelled_users(users, spec)))
        user_ids = pc.unique(pa.concat_arrays([event_users, labelled]))
        user_ids = user_ids.take(pc.sort_indices(user_ids))
        rows = pc.index_in(user_ids, value_set=profiles)

        user = pc.index_in(event_users, value_set=user_ids).to_numpy().astype(np.int64)
        times = single_array(events[spec.time])
        timed = ~is_null(times)
        time = times.fill_null(0).to_numpy()
        order = np.lexsort((events[ORDER].to_numpy(), time, timed, user))
        return cls(
            spec=spec,
            events=events,
            order=order,
            user_ids=user_ids,
            user_row=rows.fill_null(-1).to_numpy(),
            held_out=is_eval_user(user_ids, spec.split.eval_fraction),
            first=np.searchsorted(user[order], np.arange(len(user_ids) + 1)),
            user=user[order],
            time=time[order],
            timed=timed[order],
        )

    def column(self, name: str, places: np.ndarray) -> pa.Array:
        """Values of the event table at places of the timeline; null at place -1."""
        rows = pa.array(np.append(self.order, 0)[places], mask=places < 0)
        return single_array(self.events[name]).take(rows)

    def trainable(self) -> np.ndarray:
        """bool per event: training may see it, as far as time is concerned."""
        if self.spec.split.by == "user":
            return np.ones(len(self.time), bool)
        return ~self.timed | (self.time < self.spec.split.at_ms)

    def trainable_per_user(self) -> np.ndarray:
        return np.bincount(self.user[self.trainable()], minlength=len(self.user_ids))

    def visible(self) -> np.ndarray:
        """Per event: how many of the user's events are strictly earlier.

        Events of the same millisecond don't see each other; those without a time go by order.
        """
        n = len(self.time)
        starts = np.ones(n, bool)
        starts[1:] = (self.user[1:] != self.user[:-1]) | (self.time[1:] != self.time[:-1])
        starts |= ~self.timed
        starts[1:] |= ~self.timed[:-1]
        tie = np.maximum.accumulate(np.where(starts, np.arange(n), 0)) if n else np.zeros(0, int)
        earlier = tie - self.first[self.user]
        if self.spec.split.history == "streaming":
            return earlier
        return np.minimum(earlier, self.trainable_per_user()[self.user])

    def sequence_values(self, channel: Channel, places: np.ndarray) -> pa.Array:
        if channel.source_column != INTERVAL:
            return self.column(channel_column(self.spec, channel), places)
        seconds = np.full(len(self.time), np.nan, np.float32)
        known = self.timed[1:] & self.timed[:-1] & (self.user[1:] == self.user[:-1])
        seconds[1:][known] = (np.diff(self.time)[known] / 1000).astype(np.float32)
        return pa.array(seconds[places])


@dataclasses.dataclass(frozen=True)
class _Windows:
    """Windows of `window` events, each beginning `window - max_length` after the last one."""

    user: np.ndarray
    start: np.ndarray
    """Place of the window's first event in the timeline."""
    length: np.ndarray
    last: np.ndarray
    train_length: np.ndarray
    offset: np.ndarray
    """The same, counted from the user's first event."""
    first_of_user: np.ndarray
    """Each user's first window."""

    @classmethod
    def of(cls, timeline: _Timeline, spec: Spec) -> _Windows:
        events = np.diff(timeline.first)
        counts = window_of(events, spec) + 1
        user = np.repeat(np.arange(len(events)), counts)
        first_of_user = np.cumsum(counts) - counts
        number = np.arange(len(user)) - first_of_user[user]
        offset = number * (spec.sequence.window - spec.sequence.max_length)
        length = np.minimum(events[user] - offset, spec.sequence.window)
        trainable = timeline.trainable_per_user()
        if spec.split.by == "user":
            trainable = np.where(timeline.held_out, 0, trainable)
        return cls(
            user=user,
            start=timeline.first[user] + offset,
            offset=offset,
            length=length,
            last=number == counts[user] - 1,
            train_length=np.clip(trainable[user] - offset, 0, length),
            first_of_user=first_of_user,
        )


def window_of(position: np.ndarray, spec: Spec) -> np.ndarray:
    """The one window of a user that holds all of a target's newest `max_length` visible events.

    It is the first that ends at or after `position`, the count of the user's events it may see.
    """
    stride = spec.sequence.window - spec.sequence.max_length
    return np.maximum(0, -((spec.sequence.window - position) // stride))


@dataclasses.dataclass(frozen=True)
class _Targets:
    """All targets, by window; in a window impressions in order, then the per-user one."""

    count: np.ndarray
    """Targets of each window."""
    user: np.ndarray
    event: np.ndarray
    """Place in the timeline, -1 for a per-user target."""
    seen: np.ndarray
    """How many of the user's events the target may see."""
    position: np.ndarray
    """How many of the window's."""
    split: np.ndarray

    @classmethod
    def of(cls, timeline: _Timeline, windows: _Windows, users: pa.Table, spec: Spec) -> _Targets:
        event, event_split = _impressions(timeline, spec)
        profile = _profiled_users(timeline, users, spec)
        held_out = timeline.held_out[profile]
        everything = np.diff(timeline.first)[profile]
        trainable = timeline.trainable_per_user()[profile]

        event = np.concatenate([event, np.full(len(profile), -1)])
        user = np.concatenate([timeline.user[event[: len(event_split)]], profile])
        seen = np.concatenate(
            [
                timeline.visible()[event[: len(event_split)]],
                np.where(held_out, everything, trainable),
            ]
        )
        split = np.concatenate([event_split, held_out])
        window = windows.first_of_user[user] + window_of(seen, spec)
        order = np.argsort(window, kind="stable")
        return cls(
            count=np.bincount(window, minlength=len(windows.user)),
            user=user[order],
            event=event[order],
            seen=seen[order],
            position=(seen - windows.offset[window])[order],
            split=split[order].astype(np.int64),
        )

    def candidate_values(self, channel: Channel, timeline: _Timeline) -> pa.Array:
        if channel.source_column == INTERVAL:
            return pa.array(self._seconds_since_newest(timeline))
        return timeline.column(channel_column(timeline.spec, channel), self.event)

    def _seconds_since_newest(self, timeline: _Timeline) -> np.ndarray:
        seconds = np.full(len(self.event), np.nan, np.float32)
        rows = np.flatnonzero((self.event >= 0) & (self.seen > 0))
        event = self.event[rows]
        newest = timeline.first[self.user[rows]] + self.seen[rows] - 1
        known = timeline.timed[event] & timeline.timed[newest]
        elapsed = timeline.time[event] - timeline.time[newest]
        seconds[rows[known]] = (elapsed[known] / 1000).astype(np.float32)
        return seconds

    def labels(self, task: Task, name: str, timeline: _Timeline, users: pa.Table) -> pa.Array:
        """float32 per target, NaN where the task has none there."""
        impression = self.event >= 0
        if task.per == "impression":
            values = timeline.column(name, self.event)
        else:
            rows = timeline.user_row[self.user]
            values = single_array(users[name]).take(pa.array(rows, mask=impression | (rows < 0)))
        return values.cast(pa.float32()).fill_null(np.nan)


def _impressions(timeline: _Timeline, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Places of events that have a label, and which of them are evaluated on: of a spec with a
    `domain` none outside it."""
    everywhere = np.arange(len(timeline.time))
    labelled = np.zeros(len(everywhere), bool)
    for task in (t for t in spec.tasks if t.per == "impression"):
        labelled |= ~is_null(timeline.column(task.label_feature, everywhere))
    event = np.flatnonzero(labelled)
    if spec.split.by == "user":
        held_out = timeline.held_out[timeline.user[event]]
    else:
        held_out = ~timeline.trainable()[event]
    kept = ~held_out | _in_domain(timeline, event, spec)
    return event[kept], held_out[kept]


def _in_domain(timeline: _Timeline, event: np.ndarray, spec: Spec) -> np.ndarray:
    if spec.domain is None:
        return np.ones(len(event), bool)
    named = spec.domain.channel
    channel = next(c for c in spec.scope("candidate") if c.name == named)
    values = timeline.column(channel_column(spec, channel), event).cast(pa.string())
    return pc.is_in(values, value_set=pa.array(spec.domain.values)).to_numpy(zero_copy_only=False)


def _profiled_users(timeline: _Timeline, users: pa.Table, spec: Spec) -> np.ndarray:
    """Users with a label of a per-user task."""
    labelled = np.append(_labelled_users(users, spec), False)
    return np.flatnonzero(labelled[timeline.user_row])


def _labelled_users(users: pa.Table, spec: Spec) -> np.ndarray:
    labelled = np.zeros(users.num_rows, bool)
    for task in (t for t in spec.tasks if t.per == "user"):
        labelled |= ~is_null(single_array(users[task.label_feature]))
    return labelled


# --- Arrow ---------------------------------------------------------------------------------


def _channel_features(
    channel: Channel, values: pa.Array, lengths: np.ndarray
) -> dict[str, pa.Array]:
    """The channel's feature, and its `_count` if multi-valued; missing values marked."""
    if isinstance(channel, DenseChannel) or not channel.multi_valued:
        return {channel.feature: _lists(_mark_missing(values), lengths)}
    counts = pc.list_value_length(values).fill_null(0).to_numpy().astype(np.int64)
    before = np.concatenate([[0], np.cumsum(counts)])
    ends = before[np.cumsum(lengths)]
    return {
        channel.feature: _lists(_mark_missing(values.flatten()), np.diff(ends, prepend=0)),
        channel.count_feature: _lists(pa.array(counts), lengths),
    }


def _mark_missing(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        return values.cast(pa.float32()).fill_null(np.nan)
    if pa.types.is_integer(values.type):
        return values.fill_null(-1)
    return values.fill_null("").cast(pa.binary())


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _single(values: pa.Array) -> pa.ListArray:
    if pa.types.is_string(values.type):
        values = values.cast(pa.binary())
    return _lists(values, np.ones(len(values), np.int64))


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[start, start + length) of each, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
