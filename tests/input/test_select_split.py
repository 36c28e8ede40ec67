"""Lists that the cut to a split can't line up are refused, not misread."""

from __future__ import annotations

import pytest
import tensorflow as tf

from modules.features import as_ragged, select_split
from tests.modules.conftest import make_spec, random_instances


@pytest.mark.parametrize("name", ["sequence_kind", "candidate_price", "label_click"])
def test_lists_of_different_lengths_are_refused(name):
    spec = make_spec()
    ragged = as_ragged(random_instances(spec, [3, 2], [2, 1]), spec)
    select_split(ragged, spec, "train")
    first, second = ragged[name].to_list()
    # As many items in all, so that nothing runs past an end.
    moved = tf.ragged.constant([first[:-1], [*second, first[-1]]], ragged[name].dtype)
    with pytest.raises(tf.errors.InvalidArgumentError, match="lists of different lengths"):
        select_split(ragged | {name: moved.with_row_splits_dtype(tf.int64)}, spec, "train")
