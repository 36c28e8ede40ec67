"""Localized ids are the same ids; shares of a batch are the batch."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.embeddings.table import NUM_RESERVED
from modules.features import as_ragged, pad
from modules.training.input.localize import host_share, large_tables, localize, replica_share
from tests.modules.conftest import ROWS, make_spec, random_instances

TABLES = {
    "item": ("sequence_item", "candidate_item"),
    "tags": ("sequence_tags", "candidate_tags"),
}


def _batch(num_events, num_targets, seed=0):
    spec = make_spec()
    return pad(as_ragged(random_instances(spec, num_events, num_targets, seed), spec), spec)


def test_large_tables_are_those_of_more_rows_than_a_full_softmax_takes():
    spec = make_spec(model={"full_softmax_rows": ROWS["tags"], "hidden_dim": 16, "num_heads": 2})
    assert large_tables(spec, ROWS) == {"item": ("sequence_item", "candidate_item")}
    assert large_tables(spec, ROWS | {"tags": ROWS["tags"] + 1}) == TABLES


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_positions_in_the_distinct_ids_give_the_ids_back(lengths, seed):
    batch = _batch(*map(list, zip(*lengths, strict=True)), seed)
    localized = localize(batch, TABLES)
    for table, features in TABLES.items():
        ids = localized[f"row_ids_{table}"].numpy()
        assert ids.dtype == np.int64
        assert ids[:NUM_RESERVED].tolist() == list(range(NUM_RESERVED))
        seen = np.concatenate([batch[f].numpy().ravel() for f in features])
        assert sorted(ids) == sorted({*range(NUM_RESERVED), *seen.tolist()})
        for feature in features:
            assert localized[feature].dtype == tf.int64
            np.testing.assert_array_equal(ids[localized[feature]], batch[feature])
    untouched = batch.keys() - {f for features in TABLES.values() for f in features}
    assert all(localized[name] is batch[name] for name in untouched)


def test_a_large_id_survives_and_other_batches_do_not_retrace():
    traces = []

    @tf.function(input_signature=[{"x": tf.TensorSpec([None, None], tf.int64)}], autograph=False)
    def run(batch):
        traces.append(1)
        return localize(batch, {"t": ["x"]})

    for ids in ([[2**40, 0], [2, 2**40]], [[5, 6, 7]]):
        localized = run({"x": tf.constant(ids, tf.int64)})
        np.testing.assert_array_equal(tf.gather(localized["row_ids_t"], localized["x"]), ids)
    assert len(traces) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("share", [host_share, replica_share])
def test_shares_part_the_rows(share, count):
    """More takers than rows included: theirs are 0 rows of the same trailing shape."""
    batch = _batch([4, 0, 9, 2, 5], [3, 1, 0, 2, 2])
    if share is replica_share:
        batch = localize(batch, TABLES)
        batch["rows_item"] = tf.random.normal([tf.size(batch["row_ids_item"]), 4])
    shares = [share(batch, tf.constant(i), count) for i in range(count)]
    for name, value in batch.items():
        got = [s[name].numpy() for s in shares]
        if name.startswith(("row_ids_", "rows_")):
            assert all(np.array_equal(part, value) for part in got)
            continue
        assert all(part.shape[1:] == value.shape[1:] for part in got)
        whole = np.empty_like(value.numpy())
        for i, part in enumerate(got):
            whole[i::count] = part
        np.testing.assert_array_equal(whole, value)
