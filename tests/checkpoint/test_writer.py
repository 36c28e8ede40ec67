"""Saving in the background: one at a time, and a failed save costs nothing but itself."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import tensorflow as tf

from modules.training.checkpoint.error import CheckpointError
from modules.training.checkpoint.store import Checkpoints
from modules.training.checkpoint.tables import read_chunks
from modules.training.checkpoint.writer import AsyncWriter
from tests.checkpoint.saves import write_part


@pytest.fixture
def events() -> list[tuple]:
    return []


@pytest.fixture
def store(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path, "a", keep=5, max_deltas=1)


@pytest.fixture
def writer(store, events):
    def report(event: str, **values) -> None:
        events.append((event, values))

    with contextlib.closing(AsyncWriter(store, None, "single", report)) as writer:
        yield writer


def _part(values):
    return lambda folder: write_part(folder, values, num_shards=1)


def _ignore(ok: bool) -> None:
    pass


def _fails_with(error: Exception):
    def part(folder):
        (folder / "half").write_text("")
        raise error

    return part


def test_saves_parts_and_tells_when_they_are_safe(store, writer, events):
    safe = []
    writer.save(10, [_part({1: 1.0}), lambda folder: {}], lambda ok: safe.append(store.steps()))
    writer.wait()
    assert safe == [[10]]
    assert not writer.busy
    ((event, values),) = events
    assert event == "checkpoint_saved"
    assert values["step"] == 10
    assert values["full"]
    assert values["bytes"] == sum(f.bytes for f in store.latest().manifest.files.values())


def test_each_save_is_a_delta_of_the_last_one_until_they_are_merged(store, writer, events):
    for step, value in enumerate([1.0, 2.0, 3.0], start=1):
        writer.save(step, [_part({step: value})], _ignore)
    writer.wait()
    assert [store.at(step).manifest.parent for step in (1, 2, 3)] == [None, 1, None]
    assert [values["full"] for _, values in events] == [True, False, True]
    (merged,) = read_chunks(store.at(3), "item")
    assert sorted(merged.ids) == [1, 2, 3]


def test_training_goes_on_meanwhile_and_one_more_save_may_wait(store, writer):
    begun, go_on, third = threading.Event(), threading.Event(), threading.Event()

    def slow(folder):
        begun.set()
        assert go_on.wait(60)
        return {}

    writer.save(1, [slow], _ignore)
    assert begun.wait(60)
    writer.save(2, [slow], _ignore)  # returns, though the first is being written
    assert writer.busy
    assert store.steps() == []

    def save_third():
        writer.save(3, [slow], _ignore)
        third.set()

    thread = threading.Thread(target=save_third)
    thread.start()
    assert not third.wait(0.2)  # no room for two that wait
    go_on.set()
    assert third.wait(60)
    thread.join()
    writer.wait()
    assert store.steps() == [1, 2, 3]
    assert not writer.busy


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        tf.errors.UnavailableError(None, None, "the server is gone\nsecond line"),
        CheckpointError("no chunk"),
    ],
)
def test_a_failed_save_is_reported_and_the_next_one_stands_on_the_last_good(
    store, writer, events, error
):
    ended = []
    writer.save(1, [_part({1: 1.0})], ended.append)
    writer.save(2, [_part({2: 2.0}), _fails_with(error)], ended.append)
    with pytest.raises(CheckpointError, match="No space left|the server is gone$|no chunk"):
        writer.wait()
    assert ended == [True, False]
    assert writer.saved == 1
    assert store.steps() == [1]
    assert [event for event, _ in events] == ["checkpoint_saved", "checkpoint_failed"]
    assert events[-1][1]["step"] == 2
    writer.save(3, [_part({2: 2.0, 3: 3.0})], ended.append)
    writer.wait()  # the last save went well
    assert store.at(3).manifest.parent == 1
    assert not list(store.folder.glob(".tmp-*"))


def test_parts_that_still_write_are_waited_for_before_a_failed_draft_is_removed(store, writer):
    failed, seen = threading.Event(), []

    def slow(folder):
        assert failed.wait(60)
        time.sleep(0.2)  # enough to be too late, if it weren't waited for
        (folder / "late").write_text("")
        seen.append(folder.exists())
        return {}

    def fails(folder):
        failed.set()
        raise OSError("broken")

    writer.save(1, [fails, slow], _ignore)
    with pytest.raises(CheckpointError, match="broken"):
        writer.wait()
    assert seen == [True]
    assert store.steps() == []


@pytest.mark.parametrize("raised_by", ["wait", "save"])
def test_a_fault_of_the_program_is_raised_even_if_another_save_follows(writer, raised_by):
    writer.save(1, [_fails_with(ZeroDivisionError("bug"))], _ignore)
    with pytest.raises(ZeroDivisionError):
        if raised_by == "save":
            while True:
                writer.save(2, [], _ignore)
        writer.wait()


def test_what_cannot_be_told_that_it_is_safe_is_reported(store, writer, events):
    def gone(ok: bool) -> None:
        raise tf.errors.UnavailableError(None, None, "the server is gone")

    writer.save(1, [], gone)
    with pytest.raises(CheckpointError, match="step 1: the server is gone"):
        writer.wait()
    assert store.steps() == [1]
    assert [event for event, _ in events] == ["checkpoint_saved", "checkpoint_failed"]


def test_a_saved_step_is_not_saved_again(store, writer, events):
    writer.save(1, [_part({1: 1.0})], _ignore)
    writer.save(1, [_fails_with(ZeroDivisionError("not called"))], _ignore)
    writer.wait()
    assert len(events) == 1
