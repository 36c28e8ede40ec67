"""Saving in the background: one at a time, and a failed save costs nothing but itself."""

from __future__ import annotations

import contextlib
import threading

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


def _values(values):
    return lambda folder: write_part(folder, values, num_shards=1)


def _fails_with(error: Exception):
    def write(folder):
        (folder / "half").write_text("")
        raise error

    return write


def test_a_save_is_reported_once_it_is_complete(store, writer, events):
    writer.save(10, _values({1: 1.0}))
    writer.wait()
    assert store.steps() == [10]
    assert writer.saved == 10
    ((event, values),) = events
    assert event == "checkpoint_saved"
    assert values["step"] == 10
    assert values["full"]
    assert values["bytes"] == sum(f.bytes for f in store.latest().manifest.files.values())


def test_each_save_is_a_delta_of_the_last_one_until_they_are_merged(store, writer, events):
    for step, value in enumerate([1.0, 2.0, 3.0], start=1):
        writer.save(step, _values({step: value}))
    writer.wait()
    assert [store.at(step).manifest.parent for step in (1, 2, 3)] == [None, 1, None]
    assert [values["full"] for _, values in events] == [True, False, True]
    (merged,) = read_chunks(store.at(3), "item")
    assert sorted(merged.ids) == [1, 2, 3]


def test_training_goes_on_meanwhile_until_the_next_save(store, writer):
    begun, go_on, second = threading.Event(), threading.Event(), threading.Event()

    def slow(folder):
        begun.set()
        assert go_on.wait(60)
        return {}

    writer.save(1, slow)  # returns, though it is being written
    assert begun.wait(60)
    assert store.steps() == []

    def save_second():
        writer.save(2, slow)
        second.set()

    thread = threading.Thread(target=save_second)
    thread.start()
    assert not second.wait(0.2)
    go_on.set()
    assert second.wait(60)
    thread.join()
    writer.wait()
    assert store.steps() == [1, 2]


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
    writer.save(1, _values({1: 1.0}))
    writer.save(2, _fails_with(error))
    with pytest.raises(CheckpointError, match="No space left|the server is gone$|no chunk"):
        writer.wait()
    assert writer.saved == 1
    assert store.steps() == [1]
    assert [event for event, _ in events] == ["checkpoint_saved", "checkpoint_failed"]
    assert events[-1][1]["step"] == 2
    writer.save(3, _values({2: 2.0, 3: 3.0}))
    writer.wait()  # the last save went well
    assert store.at(3).manifest.parent == 1
    assert not list(store.folder.glob(".tmp-*"))


@pytest.mark.parametrize("raised_by", ["wait", "save"])
def test_a_fault_of_the_program_is_raised(writer, raised_by):
    writer.save(1, _fails_with(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        if raised_by == "save":
            writer.save(2, _values({}))
        writer.wait()
