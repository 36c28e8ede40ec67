"""A checkpoint to be handed on: alone it holds what its whole chain held."""

from __future__ import annotations

import shutil

import pytest

from modules.training.checkpoint import manifest
from modules.training.checkpoint.error import CheckpointError
from modules.training.checkpoint.store import Checkpoint, Checkpoints
from modules.training.checkpoint.tables import read_chunks
from modules.training.checkpoint.whole import write_whole
from tests.checkpoint.saves import cut, save, tree, write_part


@pytest.fixture
def store(tmp_path) -> Checkpoints:
    store = Checkpoints(tmp_path / "checkpoints", "a")
    save(store, 1, None, {1: 1.0, 2: 2.0})
    with store.begin(2, 1) as draft:
        (draft.folder / "dense.index").write_bytes(b"dense")
        draft.commit("mirrored", write_part(draft.folder, {2: 3.0, 4: 4.0}, num_shards=2))
    return store


def test_it_needs_no_other(store, tmp_path):
    before = tree(store.folder)
    target = tmp_path / "artifact/pretrained"
    returned = write_whole(store.latest(), target)
    assert tree(store.folder) == before
    shutil.rmtree(store.folder)
    found = Checkpoint(target, manifest.read(target), None)
    assert returned == found
    assert (found.manifest.step, found.manifest.parent) == (2, None)
    assert (target / "dense.index").read_bytes() == b"dense"
    parts = list(read_chunks(found, "item"))
    rows = [(int(i), r[0]) for part in parts for i, r in zip(part.ids, part.rows, strict=True)]
    assert sorted(rows) == [(1, 1.0), (2, 3.0), (4, 4.0)]
    with pytest.raises(CheckpointError, match="pretrained exists already"):
        write_whole(found, target)


def test_what_fails_leaves_nothing(store, tmp_path):
    latest = store.latest()
    cut(next(latest.folder.rglob("tables/**/*.data-*")))
    with pytest.raises(CheckpointError, match="can't be read"):
        write_whole(latest, tmp_path / "artifact/pretrained")
    assert list((tmp_path / "artifact").iterdir()) == []
