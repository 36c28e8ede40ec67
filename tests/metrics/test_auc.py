"""AUC and GAUC against definitions written out, and the histogram against the exact AUC."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.metrics.auc import auc
from modules.metrics.gauc import auc_per_group, gauc
from modules.metrics.score_histogram import bucket_edges, count_scores, curve, histogram_auc


def pair_auc(labels, scores):
    """The definition: the share of (positive, negative) pairs in order, ties counting half."""
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    return ((difference > 0) + 0.5 * (difference == 0)).mean() if difference.size else np.nan


def written_out_gauc(users, labels, scores):
    """KEEP eq. 7, user by user."""
    numerator = denominator = 0.0
    for user in np.unique(users):
        own = users == user
        value = pair_auc(labels[own], scores[own])
        if not np.isnan(value):
            numerator += own.sum() * value
            denominator += own.sum()
    return numerator / denominator if denominator else np.nan


impressions = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=60
)


@given(impressions)
def test_auc_and_gauc_are_their_definitions(rows):
    users, labels, scores = np.array(rows, np.int64).T
    np.testing.assert_allclose(auc(labels, scores), pair_auc(labels, scores), atol=1e-12)
    np.testing.assert_allclose(
        gauc(users, labels, scores / 5), written_out_gauc(users, labels, scores / 5), atol=1e-12
    )


def test_a_user_with_one_class_is_left_out_and_impressions_weigh():
    users = np.array([7, 7, 7, 7, 3, 3, 9, 9, 9])
    labels = np.array([1, 0, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([0.5, 0.1, 0.5, 0.9, 0.2, 0.8, 0.1, 0.2, 0.3])
    # User 7: (1 + 1/2 + 0) / 3 over 4 impressions; user 3: 1 over 2; user 9 has one class.
    assert gauc(users, labels, scores) == pytest.approx((4 * 0.5 + 2 * 1.0) / 6)
    result = auc_per_group(users, labels, scores)
    np.testing.assert_array_equal(result.auc, [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(result.size, [2, 4, 3])


def test_no_pairs_is_nan():
    empty = np.zeros(0)
    assert np.isnan(auc(empty, empty))
    assert np.isnan(auc(np.ones(3), np.arange(3)))
    assert np.isnan(gauc(np.zeros(0, np.int64), empty, empty))
    assert np.isnan(gauc(np.arange(4), np.array([0, 1, 0, 1]), np.zeros(4)))
    assert np.isnan(histogram_auc(count_scores(np.ones(3), np.full(3, 0.5))))


@pytest.mark.parametrize(
    ("shift", "spread", "separation"),
    [(0.0, 1.0, 1.0), (-4.0, 1.5, 1.5), (0.0, 0.3, 0.3), (-7.0, 1.0, 3.0), (2.0, 3.0, 0.1)],
)
def test_histogram_auc_is_exact_to_1e_4(shift, spread, separation):
    rng = np.random.default_rng(0)
    logits = shift + spread * rng.standard_normal(200_000)
    labels = (rng.random(200_000) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    scores = 1 / (1 + np.exp(-(separation * logits + 0.1 * rng.standard_normal(200_000))))
    scores = scores.astype(np.float32)
    exact = auc(labels, scores)
    assert abs(histogram_auc(count_scores(labels, scores)) - exact) < 1e-4
    assert exact > 0.51  # The comparison is about something.


def test_histograms_of_parts_add_up():
    rng = np.random.default_rng(1)
    scores, labels = rng.random(1000), rng.integers(0, 2, 1000)
    parts = count_scores(labels[:300], scores[:300]) + count_scores(labels[300:], scores[300:])
    np.testing.assert_array_equal(parts, count_scores(labels, scores))


def test_certain_scores_stay_at_the_ends():
    histogram = count_scores(np.array([0, 1]), np.array([0.0, 1.0]))
    assert histogram[0, 0] == histogram[1, -1] == 1
    assert histogram_auc(histogram) == 1.0


@pytest.mark.parametrize("score", [-0.1, 1.5, np.nan])
def test_a_score_that_is_no_probability_is_refused(score):
    with pytest.raises(ValueError, match=r"aren't in \[0, 1\]"):
        count_scores(np.array([1.0]), np.array([score]))


def test_curve_keeps_every_impression_and_its_limits():
    rng = np.random.default_rng(2)
    scores = rng.beta(1, 30, 50_000)
    labels = (rng.random(50_000) < scores).astype(int)
    points = curve(count_scores(labels, scores), 20)
    assert len(points.lower) == 20
    assert points.positives.sum() == labels.sum()
    assert (points.positives + points.negatives).min() > 2000  # About 2500 each.
    np.testing.assert_array_equal(points.lower[1:], points.upper[:-1])
    assert (points.lower[0], points.upper[-1]) == (0.0, 1.0)
    inside = (scores >= points.lower[7]) & (scores < points.upper[7])
    assert points.score[7] == pytest.approx(scores[inside].sum(), rel=1e-3)
    assert inside.sum() == points.positives[7] + points.negatives[7]
    assert (np.diff(bucket_edges()) >= 0).all()
