"""Dynamic and compressed tables in the spec: what it refuses, and which numbers ids become."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from data.spec import Spec, SpecError, parse_spec
from modules.embeddings.compressed import QuotientRemainderTable, compressed_table
from modules.embeddings.table import MISSING, NUM_RESERVED
from modules.preprocessing import preprocessing_fn, private_rows, table_rows

DYNAMIC = {"capacity": 64, "tail_rows": 10, "evict_after": 100}
SMALLER = {"method": "multi_hash", "rows": 50}


def _spec(**item) -> Spec:
    return parse_spec(
        {
            "name": "tables",
            "source": {"format": "tabular", "path": "*.parquet"},
            "channels": [
                {"name": "item", "scope": "sequence", "kind": "id"} | item,
                {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
            ],
            "tasks": [{"name": "click", "label": "clicked"}],
            "training": {"pretrain": {"epochs": int(item.get("mask_prediction", False))}},
        }
    )


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({}, "id table 'item' needs 'rows' (or 'dynamic')"),
        ({"dynamic": DYNAMIC, "rows": 5}, "'item' is dynamic: it takes no 'rows'"),
        ({"dynamic": DYNAMIC, "top_k": 5}, "'item' is dynamic: it takes no 'top_k'"),
        ({"dynamic": DYNAMIC, "compression": SMALLER}, "is dynamic: it takes no 'compression'"),
        ({"dynamic": DYNAMIC | {"capacity": 63}}, "capacity: Input should be a multiple of 8"),
        ({"dynamic": DYNAMIC | {"admit_after": 0}}, "admit_after: Input should be greater"),
        (
            {"compression": {"method": "quotient_remainder", "rows": 59}, "rows": 900},
            "compression.rows 59 can't tell 900 rows apart",
        ),
        (
            {"compression": {"method": "quotient_remainder", "rows": 60, "hashes": 3}, "rows": 9},
            "'hashes' goes with method multi_hash",
        ),
    ],
)
def test_refusals(item, said):
    with pytest.raises(SpecError) as refusal:
        _spec(**item)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    "item", [{"dynamic": DYNAMIC}, {"rows": 900, "compression": SMALLER | {"hashes": 3}}]
)
def test_ids_of_any_table_can_be_predicted(item):
    assert _spec(**item, mask_prediction=True).mcp_channels


@pytest.mark.parametrize(
    "item", [{"dynamic": DYNAMIC}, {"rows": 900, "compression": SMALLER | {"hashes": 3}}]
)
def test_the_spec_survives_json(item):
    spec = _spec(**item)
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_what_is_large():
    """By its rows, but a dynamic table always is and a compressed one never."""
    at_most = _spec(rows=900).model.full_softmax_rows
    sizes = {"few": at_most, "many": at_most + 1}
    plain, dynamic = _spec(rows=900), _spec(dynamic=DYNAMIC)
    compressed = _spec(rows=900, compression=SMALLER)
    assert [plain.is_large("item", n) for n in sizes.values()] == [False, True]
    assert all(dynamic.is_large("item", n) for n in sizes.values())
    assert not any(compressed.is_large("item", n) for n in sizes.values())
    assert (plain.dynamic_tables, dynamic.dynamic_tables) == ((), ("item",))


def _transformed(spec: Spec, values: list) -> np.ndarray:
    """Both channels get the values; preprocessing must treat a shared table's alike."""
    ragged = tf.ragged.constant([values, []])
    lists = {"sequence_item": ragged, "candidate_item": ragged}
    num_events = tf.constant([[len(values)], [0]], tf.int64)
    counts = {"sequence_length": num_events, "train_length": num_events}
    splits = {"target_split": tf.ragged.constant([[0] * len(values), []], dtype=tf.int64)}
    outputs = preprocessing_fn(lists | counts | splits, {"spec": spec.model_dump_json()})
    sequence, candidate = (outputs[name].flat_values.numpy() for name in lists)
    np.testing.assert_array_equal(sequence, candidate)
    assert sequence.dtype == np.int64
    return sequence


def test_keys_of_integer_ids():
    spec = _spec(dynamic=DYNAMIC)
    ids = [-1, 0, 1, 2**40, 2**63 - 1 - NUM_RESERVED]
    keys = _transformed(spec, ids)
    assert keys.tolist() == [MISSING, 3, 4, 2**40 + 3, 2**63 - 1]
    assert table_rows(spec, None) == {"item": NUM_RESERVED + 64 + 10}


def test_keys_of_string_ids():
    keys = _transformed(_spec(dynamic=DYNAMIC, dtype="string"), ["", "a", "b", "a", "ä"])
    assert keys[0] == MISSING and keys[1] == keys[3]
    assert len(set(keys)) == 4 and (keys[1:] >= NUM_RESERVED).all()
    # Pinned: a model keeps its keys when a new version of anything is installed.
    assert keys[1] == 3694432073954588134


def test_row_numbers_of_a_compressed_table_may_be_huge():
    spec = _spec(rows=2**40, top_k=0, compression=SMALLER)
    rows = table_rows(spec, None)["item"]
    assert rows == NUM_RESERVED + 2**40
    assert private_rows(spec, "item", rows) == NUM_RESERVED
    ids = _transformed(spec, list(range(1000)))
    assert len(set(ids)) == 1000 and ids.max() < rows
    table = compressed_table(
        rows, 4, "item", private_rows(spec, "item", rows), spec.channels[0].compression
    )
    assert len(np.unique(table(tf.constant(ids)), axis=0)) > 500


def test_a_spec_that_is_taken_makes_a_table():
    spec = _spec(rows=900, top_k=0, compression={"method": "quotient_remainder", "rows": 60})
    rows = table_rows(spec, None)["item"]
    table = compressed_table(rows, 4, "item", NUM_RESERVED, spec.channels[0].compression)
    assert isinstance(table, QuotientRemainderTable) and table.remainders == 30
