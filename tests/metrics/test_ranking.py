"""Ranks against sorting, ties against a fair coin, and the metrics by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from modules.metrics.ranking import hit_rate, ndcg, ranks, reciprocal_rank, sample_negatives


def test_without_ties_a_rank_is_a_place_in_the_order():
    rng = np.random.default_rng(0)
    scores, target = rng.normal(size=(50, 20)), rng.integers(0, 20, 50)
    order = np.argsort(-scores, axis=1)
    expected = [list(row).index(t) + 1 for row, t in zip(order, target, strict=True)]
    np.testing.assert_array_equal(ranks(scores, target), expected)


def test_a_tie_is_the_mean_over_all_orders_of_the_tied():
    scores = np.array([[3.0, 1.0, 1.0, 1.0, 0.0]])
    places = [order.index(1) + 2 for order in itertools.permutations([1, 2, 3])]
    np.testing.assert_allclose(ranks(scores, np.array([1])), np.mean(places))


def test_excluded_candidates_neither_beat_nor_tie():
    scores = np.array([[5.0, 4.0, 4.0, 1.0]])
    excluded = np.array([[True, False, True, False]])
    np.testing.assert_array_equal(ranks(scores, np.array([1])), [2.5])
    np.testing.assert_array_equal(ranks(scores, np.array([1]), excluded), [1])


def test_nan_is_the_lowest_score():
    scores = np.array([[np.nan, 0.0], [0.0, np.nan]])
    np.testing.assert_array_equal(ranks(scores, np.array([0, 0])), [2, 1])


def test_a_constant_model_is_no_better_than_chance():
    places = ranks(np.zeros((3, 101)), np.array([0, 50, 100]))
    np.testing.assert_array_equal(places, [51, 51, 51])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (hit_rate, 2 / 4),
        (reciprocal_rank, (1 + 1 / 5) / 4),
        (ndcg, (1 + 1 / math.log2(6)) / 4),
    ],
)
def test_metrics_by_hand(metric, expected):
    np.testing.assert_allclose(metric(np.array([1.0, 5.0, 6.0, 100.0]), 5), expected)


def test_negatives_are_others_unseen_and_distinct():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 20, 400)
    seen = np.stack([np.repeat(np.arange(400), 5), rng.integers(0, 20, 2000)], axis=1)
    drawn = sample_negatives(right, 20, 14, rng, seen)
    assert drawn.shape == (400, 14) and drawn.min() >= 0 and drawn.max() < 20
    for query, row in enumerate(drawn):
        barred = {right[query], *seen[seen[:, 0] == query, 1]}
        assert len(set(row)) == 14 and not set(row) & barred


def test_negatives_are_uniform():
    drawn = sample_negatives(np.zeros(20_000, int), 11, 3, np.random.default_rng(1))
    np.testing.assert_allclose(
        np.bincount(drawn.ravel(), minlength=11)[1:] / 20_000, 0.3, atol=0.02
    )


def test_too_few_items_are_named():
    with pytest.raises(ValueError, match="query 1 has 2 items left to draw, but 3"):
        sample_negatives(np.array([0, 0]), 4, 3, np.random.default_rng(0), np.array([[1, 2]]))
