"""Table chunks: whatever the chain and the shards, every row reads its newest value."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.training.checkpoint.error import CheckpointError, DamagedError
from modules.training.checkpoint.store import Checkpoint, Checkpoints
from modules.training.checkpoint.tables import (
    chunks,
    merge,
    read_chunk,
    read_chunks,
    require_shape,
    write_chunk,
)
from tests.checkpoint.saves import DIM, NUM_ROWS, Values, cut, flip, save, write_part

_deltas = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, NUM_ROWS - 1), st.integers(0, 99).map(float), max_size=20),
        st.sampled_from([1, 2, 3, 4]),
    ),
    min_size=1,
    max_size=6,
)
_few = settings(max_examples=25, deadline=None)


def _restored(checkpoint: Checkpoint) -> Values:
    found: Values = {}
    for part in read_chunks(checkpoint, "item"):
        assert (part.rows == part.rows[:, :1]).all()
        assert (part.state == part.rows[:, 0] + 1).all()
        found |= dict(zip(part.ids.tolist(), part.rows[:, 0].tolist(), strict=True))
    return found


@_few
@given(_deltas, st.integers(0, 3), st.integers(1, 2))
def test_a_chain_restores_the_newest_values(deltas, max_deltas, keep):
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(folder, "a", keep, max_deltas)
        model: list[Values] = [{}]
        for step, (values, shards) in enumerate(deltas, start=1):
            save(store, step, step - 1 or None, values, shards)
            model.append(model[-1] | values)
        latest = store.latest()
        assert store.skipped == []
        assert len(latest.chain) <= max_deltas + 1
        kept = store.steps()[-keep:]
        assert kept == list(range(max(1, len(deltas) - keep + 1), len(deltas) + 1))
        for step in kept:
            assert _restored(store.at(step)) == model[step]


@_few
@given(_deltas, st.integers(1, 7))
def test_merging_keeps_the_newest_of_each_row_once(deltas, chunk_rows):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        sources, model = [], {}
        for number, (values, shards) in enumerate(deltas):
            source = root / str(number)
            source.mkdir()
            sources.append((source, write_part(source, values, shards)["item"]))
            model |= values
        merged = merge(sources, root / "merged", "item", chunk_rows)
        parts = [read_chunk(str(root / "merged" / prefix)) for prefix in merged.chunks]
        assert all(0 < len(part.ids) <= chunk_rows for part in parts)
        found = [(int(i), r[0]) for part in parts for i, r in zip(part.ids, part.rows, strict=True)]
        assert len(found) == len(model)
        assert dict(found) == model
        assert merged.shards == deltas[-1][1]
        for prefix, part in zip(merged.chunks, parts, strict=True):
            assert (part.ids % merged.shards == int(prefix.split("/")[-2].split("-")[0])).all()


def test_a_merged_checkpoint_needs_no_other_and_leaves_no_delta_behind(tmp_path):
    store = Checkpoints(tmp_path, "a", keep=1, max_deltas=1)
    save(store, 1, None, {1: 1.0, 2: 2.0})
    save(store, 2, 1, {2: 3.0})
    save(store, 3, 2, {5: 4.0})
    latest = store.latest()
    assert store.steps() == [3]
    assert latest.manifest.parent is None
    names = {path.stem.split(".")[0] for path in latest.folder.rglob("tables/**/*.*")}
    assert names == {"merged-000000"}
    assert _restored(latest) == {1: 1.0, 2: 3.0, 5: 4.0}


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
@pytest.mark.parametrize("state_shape", [(3,), (3, DIM)])
def test_dtypes_at_rest_and_kinds_of_state_survive(tmp_path, dtype, state_shape):
    prefix = str(tmp_path / "a/b/0")
    rows = np.array([[0.5, 1], [2, 3], [4, 5]], dtype.as_numpy_dtype)
    state = np.ones(state_shape, np.float32)
    write_chunk(prefix, np.array([7, 1, 2**40]), rows, state)
    found = read_chunk(prefix)
    assert found.ids.tolist() == [7, 1, 2**40]
    assert found.rows.dtype == rows.dtype
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.state, state)


@pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink()])
def test_a_damaged_chunk_is_named(tmp_path, suffix, damage):
    """Also one that is damaged after it was verified, so that TensorFlow finds it."""
    prefix = tmp_path / "0"
    write_chunk(str(prefix), np.arange(3), np.ones([3, DIM], np.float32), np.ones(3, np.float32))
    damage(tmp_path / f"0.{suffix}")
    with pytest.raises(DamagedError, match=f"^{prefix} can't be read: .*") as caught:
        read_chunk(str(prefix))
    assert "\n" not in str(caught.value)


def test_rows_that_no_such_table_has_are_named(tmp_path):
    store = Checkpoints(tmp_path, "a")
    with store.begin(1, None) as draft:
        tables = write_part(draft.folder, {NUM_ROWS: 1.0}, 1)
        draft.commit("single", tables)
    with pytest.raises(DamagedError, match=r"tables/item/0-of-1/0: an id is not in \[0, 40\)"):
        list(read_chunks(store.latest(), "item"))


def test_another_table_is_refused(tmp_path):
    store = Checkpoints(tmp_path, "a")
    save(store, 1, None, {1: 1.0})
    latest = store.latest()
    with pytest.raises(CheckpointError, match=r"has no table 'user', only \['item'\]"):
        chunks(latest, "user")
    with pytest.raises(CheckpointError, match="'item' was saved as 40 x 2, but is 41 x 2 now"):
        require_shape(latest, "item", NUM_ROWS + 1, DIM)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/0 was not written: .*File exists"):
        write_chunk(str(tmp_path / "file/0"), np.arange(1), np.ones([1, 1]), np.ones(1))
