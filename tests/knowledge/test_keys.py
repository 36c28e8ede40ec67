import hashlib

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import errors
from serving.knowledge import keys

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"])))


@given(IDS)
def test_an_ids_key_is_its_blake2b_hash(ids):
    expected = [hashlib.blake2b(i.encode(), digest_size=16).digest() for i in ids]
    assert keys.of_ids(ids).tobytes() == b"".join(expected)
    assert keys.of_ids(ids).shape == (len(ids), 2)


def test_pairs_that_swap_or_shift_text_differ():
    pairs = [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"), ("a", "bb"), ("ab", "b")]
    users, categories = zip(*pairs, strict=True)
    made = keys.of_pairs(keys.of_ids(users), keys.of_categories(categories))
    assert len(np.unique(made, axis=0)) == len(pairs)


@pytest.mark.parametrize("bad", [7, None, b"u", "\ud800"])
def test_an_id_that_is_no_text_is_named(bad):
    with pytest.raises(errors.ServingError) as error:
        keys.of_ids(["u", bad])
    assert error.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert repr(bad) in error.value.message
