"""Events -> instances: the contract, leakage, windows, splits."""

from __future__ import annotations

import datetime

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from data import instances
from data.columns import event_columns
from data.spec import Spec
from tests.data.instances_reference import reference_instances
from tests.data.small import conformed, event_table, small_spec, user_table

BY_TIME = {"by": "time", "at": "1970-01-01T00:00:00.005Z", "eval_fraction": 0.4}
"""Half of the times drawn below are before it."""

_USERS = st.sampled_from(["ann", "bo", "7", "zoë"])
_OPTIONAL = {
    "time_ms": st.none() | st.integers(0, 9),
    "item": st.none() | st.integers(0, 2**40),
    "shop": st.none() | st.sampled_from(["s1", "s2"]),
    "place": st.none() | st.sampled_from(["home", "été"]),
    "tags": st.none() | st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
    "price": st.none() | st.floats(-1e6, 1e6, width=32),
    "click": st.none() | st.sampled_from(["0", "1"]),
    "click_p": st.none() | st.sampled_from([0.25, 1.0]),
    "stars": st.none() | st.sampled_from(["a", "b", "c"]),
    "spend": st.none() | st.floats(-10, 10, width=32),
}
_EVENTS = st.lists(st.fixed_dictionaries({"user_id": _USERS} | _OPTIONAL), max_size=40)
_PROFILES = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": _USERS,
            "city": st.none() | st.sampled_from(["rome", "oslo"]),
            "age": st.none() | st.integers(1, 99).map(float),
            "level": st.none() | st.sampled_from(["tin", "gold", "black"]),
        }
    ),
    unique_by=lambda row: row["user_id"],
    max_size=4,
)


def built(rows: list[dict], users: list[dict], spec: Spec) -> list[dict]:
    batch = instances.build_instances(event_table(rows, spec), user_table(users, spec), spec)
    return batch.to_pylist()


@settings(max_examples=150, deadline=None)
@given(_EVENTS, _PROFILES, st.booleans())
def test_equal_to_the_slow_reference(rows, users, by_time):
    spec = small_spec(split=BY_TIME) if by_time else small_spec()
    actual, expected = built(rows, users, spec), reference_instances(rows, users, spec)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert set(one) == set(other)
        for name, values in other.items():
            if values and isinstance(values[0], float):
                np.testing.assert_allclose(one[name], values, rtol=1e-6, err_msg=name)
            else:
                assert one[name] == values, name


@settings(max_examples=100, deadline=None)
@given(_EVENTS, st.integers(0, 9), st.sampled_from(["user", "time", "frozen"]), st.booleans())
def test_an_event_at_or_after_a_target_changes_nothing_it_sees(rows, time, split, first):
    """Leakage: an event that tells the label is planted at `time`, first or last of its tie."""
    splits = {"user": {"by": "user"}, "time": BY_TIME, "frozen": BY_TIME | {"history": "frozen"}}
    spec = small_spec(split=splits[split])
    rows = [row | {"user_id": "ann"} for row in rows]
    planted = {"user_id": "ann", "time_ms": time, "item": PLANTED, "shop": "leak",
               "place": "leak", "tags": ["leak"], "price": 1e9, "click": "1"}  # fmt: skip
    with_leak = [planted, *rows] if first else [*rows, planted]
    views = _views(built(rows, [], spec), spec)
    leaked = [view for view in _views(built(with_leak, [], spec), spec) if not _planted(view)]
    times = sorted(
        -1 if row["time_ms"] is None else row["time_ms"] for row in rows if _labelled(row)
    )
    not_after = sum(t <= time for t in times)
    assert len(views) == len(leaked) == len(times)
    assert [repr(v) for v in views[:not_after]] == [repr(v) for v in leaked[:not_after]]
    assert "leak" not in repr(leaked[:not_after])


PLANTED = 2**50
"""An item that no drawn event has."""


def _views(built_instances: list[dict], spec: Spec) -> list[dict]:
    """All that each target has and sees, targets in order of time."""
    views = []
    for one in built_instances:
        tags = np.concatenate([[0], np.cumsum(one["sequence_tags_count"])]).astype(int)
        for k, position in enumerate(one["target_position"]):
            view = {c.feature: one[c.feature][:position] for c in spec.scope("sequence")}
            view["sequence_tags"] = one["sequence_tags"][: tags[position]]
            view |= {f"candidate_{c}": one[f"candidate_{c}"][k] for c in ("item", "price", "gap")}
            view |= {t.label_feature: one[t.label_feature][k] for t in spec.tasks}
            views.append(view)
    return views


def _planted(view: dict) -> bool:
    return view["candidate_item"] == PLANTED


def _labelled(row: dict) -> bool:
    return any(row.get(label) is not None for label in ("click", "stars", "spend"))


@pytest.mark.parametrize("split", [{"by": "user", "eval_fraction": 0.4}, BY_TIME])
def test_only_the_domains_impressions_are_evaluated(split):
    """All others stay history, and what is trained on stays as it is."""
    rows = [
        {"user_id": user, "time_ms": t, "item": t % 3, "click": "1"}
        for user in ("ann", "bo", "7", "zoë")
        for t in range(9)
    ]
    domain = {"channel": "item", "values": ["2"]}
    whole, cut = (
        built(rows, [], small_spec(split=split, **given)) for given in ({}, {"domain": domain})
    )

    def targets(instances, split):
        return [
            (one["user_id"], item)
            for one in instances
            for item, s in zip(one["candidate_item"], one["target_split"], strict=True)
            if s == split
        ]

    assert targets(cut, 0) == targets(whole, 0)
    assert targets(cut, 1) == [target for target in targets(whole, 1) if target[1] == 2] != []
    assert [one["sequence_item"] for one in cut] == [one["sequence_item"] for one in whole]


def test_ties_do_not_see_each_other_and_untimed_events_come_first():
    rows = [
        {"user_id": "ann", "time_ms": 5, "item": 1, "click": "1"},
        {"user_id": "ann", "time_ms": 5, "item": 2, "click": "0"},
        {"user_id": "ann", "time_ms": None, "item": 3},
        {"user_id": "ann", "time_ms": 2, "item": 4, "click": "1"},
    ]
    (one,) = built(rows, [], small_spec())
    assert one["sequence_item"] == [3, 4, 1, 2]
    assert one["candidate_item"] == [4, 1, 2]
    assert one["target_position"] == [1, 2, 2]
    np.testing.assert_allclose(one["candidate_gap"], [np.nan, 0.003, 0.003])


def test_a_user_with_100000_events():
    """Each target once, with all of its newest visible events; storage grows by the overlap."""
    count = 100_000
    spec = small_spec(sequence={"max_length": 64, "window": 512})
    table = pa.table(
        {
            "user_id": pa.array(["ann"] * count),
            "time_ms": np.arange(count),
            "item": np.arange(count),
            "click": pa.array(["1"] * count),
            **{
                name: pa.nulls(count, pa.string())
                for name in ("shop", "place", "tags", "price", "click_p", "stars", "spend")
            },
        }
    )
    conformed_events, _ = conformed(table, event_columns(spec))
    batch = instances.build_instances(conformed_events, user_table([], spec), spec)
    lengths = np.array([v[0] for v in batch["sequence_length"].to_pylist()])
    assert lengths.max() == 512 and lengths.sum() <= 1.15 * count
    assert sum(v[0] for v in batch["window_last"].to_pylist()) == 1

    candidates = np.concatenate(batch["candidate_item"].to_pylist())
    np.testing.assert_array_equal(candidates, np.arange(count))
    for items, positions, own in zip(
        batch["sequence_item"].to_pylist(),
        batch["target_position"].to_pylist(),
        batch["candidate_item"].to_pylist(),
        strict=True,
    ):
        newest = np.array([items[p - 1] if p else -1 for p in positions])
        np.testing.assert_array_equal(newest, np.array(own) - 1)
        oldest_wanted = np.maximum(np.array(own) - 64, 0)
        assert (oldest_wanted >= items[0]).all()


def test_a_user_without_events_but_with_a_label():
    users = [{"user_id": "ann", "city": "rome", "level": "gold"}, {"user_id": "bo", "city": "oslo"}]
    (one,) = built([], users, small_spec())
    assert one["user_id"] == [b"ann"] and one["sequence_length"] == [0]
    assert one["sequence_item"] == [] and one["target_position"] == [0]
    assert one["label_vip"] == [1.0] and one["context_city"] == [b"rome"]


def test_a_train_users_label_never_sees_the_time_splits_test_side():
    """Its per-user target stands where the train events end, not in a window past the split."""
    spec = small_spec(split=BY_TIME | {"eval_fraction": 1e-9})
    rows = [{"user_id": "ann", "time_ms": t, "item": t, "click": "1"} for t in range(40)]
    made = built(rows, [{"user_id": "ann", "level": "gold"}], spec)
    ((one, k),) = [
        (one, k) for one in made for k, is_user in enumerate(one["target_per_user"]) if is_user
    ]
    assert one["sequence_item"][: one["target_position"][k]] == [0, 1, 2, 3, 4]
    assert one["target_position"][k] == one["train_length"][0]


def test_the_user_hash_is_the_same_everywhere():
    """A change would reshuffle every user's split: held-out labels would be trained on."""
    users = pa.array(["ann", "7", "zoë"])
    assert instances.user_hash(users).tolist() == HASHES
    many = pa.array([str(i) for i in range(20_000)])
    assert instances.is_eval_user(many, 0.2).mean() == pytest.approx(0.2, abs=0.01)


HASHES = [15203920426015911114, 639464881952108352, 14788036263980857023]


def test_file_split_is_eval_where_any_target_is():
    batch = pa.RecordBatch.from_pydict({"target_split": [[0, 1], [0], [], [1]]})
    assert instances.file_split(batch).tolist() == [True, False, False, True]


def test_split_moment_without_a_zone_is_utc():
    naive = small_spec(split=BY_TIME | {"at": datetime.datetime(2022, 5, 1)})
    zoned = small_spec(split=BY_TIME | {"at": "2022-05-01T08:00:00+08:00"})
    assert naive.split.at_ms == zoned.split.at_ms == 1651363200000


def test_frozen_history_hides_what_happens_after_the_split():
    """An eval target sees the events before the split only; a train target all earlier ones."""
    rows = [
        {"user_id": "ann", "time_ms": t, "item": t, "click": "1"} for t in (1, 2, 4, 6, 8, 9)
    ]  # fmt: skip
    streaming, frozen = (
        built(rows, [], small_spec(split=BY_TIME | {"history": history}))[0]["target_position"]
        for history in ("streaming", "frozen")
    )
    assert streaming == [0, 1, 2, 3, 4, 5]
    assert frozen == [0, 1, 2, 3, 3, 3]
