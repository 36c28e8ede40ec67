"""The users that `weighting: bilevel` validates on are the same in every batch, all windows."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from modules.features import HELD_OUT
from modules.training.input.batches import epoch_batches
from modules.training.input.parsing import padder
from modules.training.input.shards import write_shards
from tests.input.transformed import Transformed, write_transformed
from tests.modules.conftest import make_spec


@pytest.fixture(scope="module")
def transformed(tmp_path_factory) -> Transformed:
    return write_transformed(tmp_path_factory.mktemp("transformed"), 400)


def _batch(transformed, weighting: str, split: str, order: np.ndarray):
    spec = make_spec(training={"finetune": {"weighting": weighting}})
    records = tf.data.TFRecordDataset(sorted(transformed.files), "GZIP")
    serialized = next(iter(records.batch(400)))
    return padder(transformed.output, spec, split, epoch=0)(tf.gather(serialized, order))


def test_an_eighth_of_the_users_is_held_out_whatever_batch_they_are_in(transformed):
    given = np.arange(400)
    held_out = _batch(transformed, "bilevel", "train", given)[HELD_OUT].numpy()
    np.testing.assert_array_equal(held_out[::2], held_out[1::2])  # two instances a user
    assert abs(held_out.mean() - 0.125) < 0.05
    some = np.random.default_rng(0).permutation(given)[:70]
    again = _batch(transformed, "bilevel", "train", some)[HELD_OUT].numpy()
    np.testing.assert_array_equal(again, held_out[some])


def test_nobody_is_held_out_of_an_evaluation_or_for_other_weightings(transformed):
    given = np.arange(400)
    assert not _batch(transformed, "bilevel", "eval", given)[HELD_OUT].numpy().any()
    assert HELD_OUT not in _batch(transformed, "gradnorm", "train", given)


@pytest.mark.parametrize(("epochs", "first_without"), [(1, 1), (2, 2), (3, 2), (6, 4)])
def test_the_last_third_of_the_epochs_holds_nobody_out(
    transformed, tmp_path, epochs, first_without
):
    training = {"finetune": {"weighting": "bilevel", "epochs": epochs}}
    spec = make_spec(training=training)
    given = transformed.files, transformed.output, spec, "train", str(tmp_path / "shards")
    shards = write_shards(*given, batch_size=40, batches_per_shard=2, shards_per_unit=2, seed=7)
    for epoch in range(epochs):
        batches = epoch_batches(shards, transformed.output, spec, epoch)
        somebody = any(batch[HELD_OUT].numpy().any() for batch in batches)
        assert somebody == (epoch < first_without)
