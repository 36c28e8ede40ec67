"""The folder of checkpoints: only whole ones count, and no failure costs an earlier one."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from modules.training.checkpoint.error import CheckpointError, DamagedError
from modules.training.checkpoint.manifest import Table
from modules.training.checkpoint.store import Checkpoints
from tests.checkpoint import saver
from tests.checkpoint.saves import cut, flip, tree
from tests.repo.source_tree import ROOT


def _save(
    store: Checkpoints,
    step: int,
    parent: int | None,
    content: bytes = b"x" * 64,
    full: bool = False,
) -> None:
    with store.begin(step, parent) as draft:
        (draft.folder / "part").write_bytes(content)
        if full:
            draft.ancestors = {}
        draft.commit("single", {})


@pytest.fixture
def store(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", run="a", keep=2, max_deltas=2)


def test_without_any_there_is_no_latest(store):
    assert store.latest() is None
    assert store.steps() == []


def test_the_newest_is_found_with_what_it_needs(store):
    _save(store, 100, None)
    _save(store, 200, 100, b"y")
    latest = store.latest()
    assert latest.step == 200
    assert [c.step for c in latest.chain] == [100, 200]
    assert (latest.folder / "part").read_bytes() == b"y"
    assert latest.manifest.placement == "single"
    assert latest.manifest.files["part"].bytes == 1
    assert store.skipped == []


def test_a_draft_is_seen_only_when_committed(store):
    _save(store, 100, None)
    with store.begin(200, 100) as draft:
        (draft.folder / "part").write_bytes(b"y")
        assert store.latest().step == 100
        draft.commit("single", {})
    assert store.latest().step == 200


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("bug")])
def test_what_fails_is_removed(store, failure):
    _save(store, 100, None)
    before = tree(store.folder)
    expected = CheckpointError if isinstance(failure, OSError) else RuntimeError
    with pytest.raises(expected, match="No space left|bug"), store.begin(200, 100) as draft:
        (draft.folder / "part").write_bytes(b"y")
        raise failure
    assert tree(store.folder) == before
    _save(store, 200, 100)  # and the folder isn't locked


def test_leaving_without_a_commit_saves_nothing(store):
    with store.begin(100, None) as draft:
        (draft.folder / "part").write_bytes(b"y")
    assert store.steps() == []
    assert not draft.folder.exists()


def test_a_chunk_that_was_not_written_is_noticed_at_the_commit(store):
    table = Table(num_rows=4, dim=2, shards=1, chunks=["tables/item/0-of-1/0"])
    with (
        pytest.raises(CheckpointError, match="'item': tables/item/0-of-1/0.index was not written"),
        store.begin(100, None) as draft,
    ):
        draft.commit("single", {"item": table})
    assert store.steps() == []


def _edit_manifest(**changes):
    def edit(folder: pathlib.Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: cut(f / "part"), "part has 32 bytes instead of 64"),
        (lambda f: flip(f / "part"), "part has another checksum"),
        (lambda f: (f / "part").unlink(), "part is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: cut(f / "manifest.json"), "manifest.json is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is not a JSON object"),
        (_edit_manifest(format=7), "manifest.json has format 7, but this program reads 1"),
        (_edit_manifest(parent=None), "manifest.json doesn't have its own checksum"),
    ],
)
def test_a_damaged_one_is_set_aside_and_the_one_before_used(store, caplog, damage, reason):
    _save(store, 100, None)
    _save(store, 200, 100)
    damage(store.folder / "step-000000200")
    left = tree(store.folder / "step-000000200")
    with pytest.raises(DamagedError, match=reason):
        store.at(200)
    with caplog.at_level(logging.WARNING):
        assert store.latest().step == 100
    (skipped,) = store.skipped
    assert skipped.step == 200
    assert re.search(reason, skipped.reason)
    assert reason in caplog.text
    assert skipped.folder.name == "damaged-step-000000200"
    assert tree(skipped.folder) == left
    _save(store, 200, 100)  # training gets there again
    assert store.latest().step == 200


def test_those_that_need_a_damaged_one_are_set_aside_too(store):
    _save(store, 100, None)
    _save(store, 200, 100)
    _save(store, 300, 200)
    flip(store.folder / "step-000000200/part")
    assert store.latest().step == 100
    assert [(s.step, s.folder.name) for s in store.skipped] == [
        (300, "damaged-step-000000300"),
        (200, "damaged-step-000000200"),
    ]
    assert "needs step-000000200: part has another checksum" in store.skipped[0].reason


def test_a_second_one_damaged_at_the_same_step_is_kept_beside_the_first(store):
    for _ in range(2):
        _save(store, 100, None)
        flip(store.folder / "step-000000100/part")
        with pytest.raises(CheckpointError, match="all checkpoints are damaged"):
            store.latest()
    assert len({skipped.folder for skipped in store.skipped}) == 2
    assert all(skipped.folder.is_dir() for skipped in store.skipped)


def test_another_runs_checkpoints_are_refused_and_left_alone(store):
    _save(store, 100, None)
    other = Checkpoints(store.folder, run="b")
    with pytest.raises(CheckpointError, match="is of run 'a', not 'b': use another folder"):
        other.latest()
    with pytest.raises(CheckpointError, match="the newest checkpoint is of step 100"):
        other.begin(50, None)
    assert store.latest().step == 100


def test_old_ones_go_but_none_that_a_kept_one_needs(store):
    _save(store, 100, None)
    for step in range(200, 500, 100):
        _save(store, step, step - 100)
    assert store.steps() == [100, 200, 300, 400]  # 400 needs them all
    with store.begin(500, 400) as draft:
        assert draft.needs_merge
    _save(store, 500, 400, full=True)
    assert store.steps() == [100, 200, 300, 400, 500]  # 400 is kept
    _save(store, 600, 500)
    assert store.steps() == [100, 200, 300, 400, 500, 600]  # 400 needs nothing that 600 does
    _save(store, 700, 600, full=True)
    assert store.steps() == [500, 600, 700]
    flip(store.folder / "step-000000700/part")
    assert store.latest().step == 600
    assert sorted(set(os.listdir(store.folder)) - {".lock"}) == [
        "damaged-step-000000700", "step-000000500", "step-000000600",
    ]  # fmt: skip


def test_a_damaged_root_leaves_a_checkpoint_of_another_root(store):
    _save(store, 100, None)
    _save(store, 200, 100, full=True)
    _save(store, 300, 200)
    _save(store, 400, 300)
    assert store.steps() == [100, 200, 300, 400]
    flip(store.folder / "step-000000200/part")
    assert store.latest().step == 100


def test_training_does_not_begin_anew_when_all_checkpoints_are_damaged(store):
    _save(store, 100, None)
    flip(store.folder / "step-000000100/part")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="all checkpoints are damaged.*remove them all"):
            store.latest()
    shutil.rmtree(store.folder / "damaged-step-000000100")
    assert store.latest() is None


def test_two_processes_cannot_train_one_run(store):
    _save(store, 100, None)
    behind = Checkpoints(store.folder, run="a")
    with store.begin(200, 100) as draft:
        with pytest.raises(CheckpointError, match="another process is saving here"):
            behind.begin(200, 100)
        draft.commit("single", {})
    with pytest.raises(CheckpointError, match="of step 200, but this process goes on from 100"):
        behind.begin(300, 100)
    with pytest.raises(CheckpointError, match="step 200 is not after 200"):
        store.begin(200, 200)


def test_what_cannot_be_read_is_not_called_damaged(store):
    _save(store, 100, None)
    path = store.folder / "step-000000100"
    target = store.folder / "elsewhere"
    path.rename(target)
    path.symlink_to(path)  # ELOOP: the disk says nothing about what was written
    with pytest.raises(CheckpointError, match="symbolic links"):
        store.latest()
    assert store.skipped == []


def test_killed_at_any_point_what_is_visible_is_whole(tmp_path):
    """In a process without TensorFlow, which can fork one to be killed at each point."""
    command = [sys.executable, "-m", saver.__name__, str(tmp_path), "at_every_point"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    points, torn, saved = (int(number) for number in done.stdout.split())
    assert torn > points / 2  # most points are amid a save
    assert saved > 1


@pytest.mark.slow
def test_killed_while_tensors_are_written_what_is_visible_is_whole(tmp_path):
    command = [sys.executable, "-m", saver.__name__, str(tmp_path), "on_and_on"]
    with subprocess.Popen(command, cwd=ROOT) as child:
        while not list(tmp_path.glob("step-*")):
            assert child.poll() is None
        child.kill()
    assert saver.check_visible(tmp_path)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["plain", "tensors"])
def test_a_full_disk_costs_no_earlier_checkpoint(small_disk, kind):
    store = Checkpoints(small_disk, saver.RUN)
    saver.save(store, 100, None, kind, num_floats=100_000)
    before = tree(small_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.save(store, 200, 100, kind, num_floats=600_000)
    assert tree(small_disk) == before
    latest = store.latest()
    assert latest.step == 100
    saver.check(latest)
    saver.save(store, 200, 100, kind, num_floats=100_000)  # there is room again
    saver.check(store.latest())
