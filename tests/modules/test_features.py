"""The input graph against row-by-row NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from modules.embeddings.table import MISSING, PAD
from modules.features import (
    as_ragged,
    newest_events,
    pad,
    require_complete_lists,
    select_split,
    visible_suffixes,
)
from tests.modules.conftest import make_spec, random_instances

EVENTS, TARGETS = [5, 0, 20, 9], [3, 2, 0, 6]


@pytest.fixture
def features(spec):
    return random_instances(spec, EVENTS, TARGETS)


def rows_of(features, name):
    return [np.asarray(row) for row in features[name].to_list()]


def test_pad_places_every_value(spec, features):
    batch = pad(as_ragged(features, spec), spec, length_multiple=8)
    assert batch["sequence_mask"].shape == (4, 24)
    assert batch["target_mask"].shape == (4, 8)
    for b, values in enumerate(rows_of(features, "sequence_item")):
        np.testing.assert_array_equal(batch["sequence_item"][b, : len(values)], values)
        assert (batch["sequence_item"][b, len(values) :].numpy() == PAD).all()
    for b, values in enumerate(rows_of(features, "candidate_price")):
        np.testing.assert_array_equal(batch["candidate_price"][b, : len(values)], values)
        assert np.isnan(batch["candidate_price"][b, len(values) :]).all()
    np.testing.assert_array_equal(batch["context_city"], features["context_city"].flat_values)


def test_multi_valued_values_stay_with_their_event(spec, features):
    batch = pad(as_ragged(features, spec), spec)
    values, counts = rows_of(features, "sequence_tags"), rows_of(features, "sequence_tags_count")
    for b in range(4):
        place = 0
        for event, count in enumerate(counts[b].astype(int)):
            got = batch["sequence_tags"][b, event].numpy()
            np.testing.assert_array_equal(got[:count], values[b][place : place + count])
            assert (got[count:] == PAD).all()
            place += count


@pytest.mark.parametrize("split,code", [("train", 0), ("eval", 1)])
def test_select_split(spec, features, split, code):
    ragged = select_split(as_ragged(features, spec), spec, split)
    keep = [row == code for row in rows_of(features, "target_split")]
    for name in ("target_position", "label_click", "candidate_item", "candidate_price"):
        for row, kept, got in zip(
            rows_of(features, name), keep, ragged[name].to_list(), strict=True
        ):
            np.testing.assert_array_equal(row[kept], got)
    lengths = features["train_length"].flat_values if split == "train" else EVENTS
    np.testing.assert_array_equal(ragged["sequence_item"].row_lengths(), lengths)
    np.testing.assert_array_equal(ragged["sequence_tags"].row_lengths(), lengths)


def test_unknown_split_is_named(spec, features):
    with pytest.raises(ValueError, match="'test'.*expected 'train' or 'eval'"):
        select_split(as_ragged(features, spec), spec, "test")


def test_a_request_may_leave_things_out(spec, features):
    """No positions: sees all. A channel left out: every value of it is missing."""
    partial = {k: v for k, v in features.items() if k not in ("target_position", "sequence_item")}
    empty = tf.RaggedTensor.from_row_splits(np.zeros(0, np.int64), np.zeros(5, np.int64))
    batch = pad(as_ragged(partial | {"sequence_item": empty}, spec), spec)
    mask = batch["sequence_mask"].numpy()
    np.testing.assert_array_equal(mask.sum(1), EVENTS)
    np.testing.assert_array_equal(batch["sequence_item"], np.where(mask, MISSING, PAD))
    real = batch["target_mask"].numpy()
    expected = np.broadcast_to(np.array(EVENTS)[:, None], real.shape)
    np.testing.assert_array_equal(batch["target_position"].numpy()[real], expected[real])


def test_visible_suffixes_are_the_newest_earlier_events():
    spec = make_spec(sequence={"max_length": 8, "window": 24, "targets": "expanded"})
    features = random_instances(spec, EVENTS, TARGETS)
    batch = pad(as_ragged(features, spec), spec, length_multiple=8)
    rows, places = visible_suffixes(batch, spec)
    positions, items = rows_of(features, "target_position"), rows_of(features, "sequence_item")
    assert len(places) == sum(TARGETS)
    for n, (b, k) in enumerate(places.numpy()):
        seen = items[b][: positions[b][k]][-8:]
        np.testing.assert_array_equal(rows["sequence_item"][n, : len(seen)], seen)
        np.testing.assert_array_equal(rows["sequence_mask"][n], np.arange(8) < len(seen))
        assert (rows["sequence_item"][n, len(seen) :].numpy() == PAD).all()
        assert np.isnan(rows["sequence_amount"][n, len(seen) :]).all()
        np.testing.assert_array_equal(rows["context_city"][n], batch["context_city"][b])


@pytest.mark.parametrize("name", ["sequence_item", "candidate_price", "target_position"])
def test_a_list_of_another_length_is_refused(spec, features, name):
    require_complete_lists(as_ragged(features, spec), spec)
    absent = features[name].values[:0]
    empty = tf.RaggedTensor.from_row_lengths(absent, np.zeros(4, np.int64))
    require_complete_lists(as_ragged(features | {name: empty}, spec), spec)
    shorter = features | {name: features[name][:, 1:]}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s)different lengths.*{name}"):
        require_complete_lists(as_ragged(shorter, spec), spec)


def test_a_long_request_is_cut_to_its_newest_events(spec, features):
    """Lists keep their last `window` events, multi-valued ones too; positions move along."""
    short = spec.model_copy(update={"sequence": spec.sequence.model_copy(update={"window": 6})})
    ragged = as_ragged(features, spec)
    cut = newest_events(ragged, short)
    for name in ("sequence_item", "sequence_amount", "sequence_tags"):
        for whole, kept in zip(ragged[name].to_list(), cut[name].to_list(), strict=True):
            assert repr(kept) == repr(whole[-6:])
    dropped = np.maximum(np.array(EVENTS) - 6, 0)
    for row, kept, gone in zip(
        rows_of(features, "target_position"), cut["target_position"].to_list(), dropped, strict=True
    ):
        np.testing.assert_array_equal(kept, np.maximum(row - gone, 0))
    assert cut["candidate_item"] is ragged["candidate_item"]
