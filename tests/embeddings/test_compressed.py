"""Compressed tables against NumPy: which stored rows make a row, and which ones learn."""

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from data.channels import Compression
from modules.embeddings.compressed import (
    MultiHashTable,
    QuotientRemainderTable,
    compressed_table,
)
from modules.embeddings.hashing import bucket, mix
from modules.embeddings.table import MASK, MISSING, PAD

PRIVATE, DIM = 8, 4


def _mixed(ids: np.ndarray, stream: int) -> np.ndarray:
    """splitmix64 in NumPy."""
    with np.errstate(over="ignore"):
        x = ids.astype(np.uint64) + np.uint64((stream + 1) * 0x9E3779B97F4A7C15 % 2**64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _bucket(ids: np.ndarray, buckets: int, stream: int) -> np.ndarray:
    return (((_mixed(ids, stream) >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32)).astype(
        np.int64
    )


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_the_hash_is_splitmix64(ids, stream):
    ids = np.array(ids, np.int64)
    np.testing.assert_array_equal(mix(tf.constant(ids), stream), _mixed(ids, stream))
    np.testing.assert_array_equal(bucket(tf.constant(ids), 97, stream), _bucket(ids, 97, stream))


def test_buckets_are_even_and_streams_independent():
    ids = tf.range(64_000, dtype=tf.int64)
    first, second = bucket(ids, 64, 0).numpy(), bucket(ids, 64, 1).numpy()
    for hashed in (first, second, (first * 7 + second) % 64):
        counts = np.bincount(hashed, minlength=64)
        # χ² with 63 degrees of freedom: mean 63, standard deviation 11.
        assert ((counts - 1000) ** 2 / 1000).sum() < 63 + 5 * 11


def _multi_hash(hashes: int = 2) -> MultiHashTable:
    return MultiHashTable(2**40, DIM, "t", private_rows=PRIVATE, shared_rows=13, hashes=hashes)


def _quotient_remainder(tail: int = 100) -> QuotientRemainderTable:
    return QuotientRemainderTable(PRIVATE + tail, DIM, "t", private_rows=PRIVATE, shared_rows=30)


@pytest.mark.parametrize("hashes", [2, 3])
def test_multi_hash_rows_are_sums(hashes):
    table = _multi_hash(hashes)
    stored = table.stored.rows.numpy()
    assert stored.shape == (PRIVATE + 13, DIM)
    tail = np.array([0, 1, 57, 2**40 - PRIVATE - 1])
    expected = sum(stored[PRIVATE + _bucket(tail, 13, k)] for k in range(hashes))
    np.testing.assert_allclose(table(tf.constant(PRIVATE + tail)), expected, rtol=1e-6)


def test_quotient_remainder_rows_are_products_and_all_differ():
    table = _quotient_remainder()
    stored = table.stored.rows.numpy()[PRIVATE:]
    m = table.remainders
    assert m + -(-100 // m) <= 30 < (m + 1) + -(-100 // (m + 1))
    tail = np.arange(100)
    rows = table(tf.constant(PRIVATE + tail)).numpy()
    np.testing.assert_allclose(rows, stored[tail % m] * (1 + stored[m + tail // m]), rtol=1e-6)
    assert len(np.unique(rows, axis=0)) == 100


@pytest.mark.parametrize("make", [_multi_hash, _quotient_remainder])
def test_private_ids_have_rows_of_their_own(make):
    table = make()
    ids = tf.constant([[PAD, MASK], [MISSING, 7]], tf.int64)
    expected = table.stored.rows.numpy()[[[0, 1], [2, 7]]]
    expected[0, 0] = 0
    np.testing.assert_array_equal(table(ids), expected)


@pytest.mark.parametrize("make", [_multi_hash, _quotient_remainder])
def test_gradients_reach_the_stored_rows_that_were_read(make):
    table = make()
    ids = np.array([PAD, 5, PRIVATE + 3, PRIVATE + 40, PRIVATE + 3])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(table(tf.constant(ids)))
    gradient = tf.convert_to_tensor(tape.gradient(loss, table.stored.rows)).numpy()
    tail, expected = ids[2:] - PRIVATE, np.zeros_like(gradient)
    expected[5] = 1
    if isinstance(table, MultiHashTable):
        for k in range(2):
            np.add.at(expected, PRIVATE + _bucket(tail, 13, k), 1.0)
    else:
        stored, m = table.stored.rows.numpy(), table.remainders
        remainder, quotient = PRIVATE + tail % m, PRIVATE + m + tail // m
        np.add.at(expected, remainder, 1 + stored[quotient])
        np.add.at(expected, quotient, stored[remainder])
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_ids_that_collide_in_one_hash_still_differ():
    tail = np.arange(2000)
    first, second = (_bucket(tail, 13, k) for k in (0, 1))
    a, b = next(
        (0, b) for b in tail[1:] if first[b] == first[0] and second[b] not in (second[0], first[0])
    )
    rows = _multi_hash()(tf.constant([PRIVATE + a, PRIVATE + b])).numpy()
    assert not np.allclose(rows[0], rows[1])


@pytest.mark.parametrize(
    "compression",
    [
        Compression(method="multi_hash", rows=64, hashes=3),
        Compression(method="quotient_remainder", rows=64),
    ],
)
def test_the_specs_table_in_mixed_precision_and_back_from_its_config(compression):
    table = compressed_table(900, DIM, "t", 10, compression, seed=3)
    assert (table.dim, table.num_rows, table.name) == (DIM, 900, "t")
    assert len(table.trainable_weights) == 1 and table.stored.num_rows == 10 + 64
    again = type(table).from_config(table.get_config())
    ids = tf.constant([0, 3, 11, 899], tf.int64)
    np.testing.assert_array_equal(table(ids), again(ids))
    half = type(table).from_config(table.get_config() | {"dtype": "mixed_bfloat16"})
    assert half(ids).dtype == tf.bfloat16 and half.stored.rows.dtype == tf.float32


def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="'t': 19 rows can't tell 100 ids apart .*; 20 can"):
        QuotientRemainderTable(PRIVATE + 100, DIM, "t", private_rows=PRIVATE, shared_rows=19)
    QuotientRemainderTable(PRIVATE + 100, DIM, "t", private_rows=PRIVATE, shared_rows=20)
    with pytest.raises(ValueError, match="'t': 2 private rows"):
        MultiHashTable(100, DIM, "t", private_rows=2, shared_rows=5)
    with pytest.raises(ValueError, match="'t' is compressed"):
        _multi_hash()(tf.constant([1]), rows=tf.zeros([3, DIM]))
