"""Recall at a precision, resampled metrics and the paired bootstrap, against written-out ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from modules.metrics.auc import auc
from modules.metrics.gauc import gauc
from modules.metrics.recall_at_precision import recall_at_precision
from modules.metrics.resampled import METRICS, measure, recall_name, resampled
from modules.metrics.significance import draw_users, p_value


def written_out_recall(labels, scores, precision):
    """Every threshold tried."""
    best = 0.0
    for threshold in np.unique(scores):
        taken = scores >= threshold
        if labels[taken].mean() >= precision:
            best = max(best, labels[taken].sum() / labels.sum())
    return best


@pytest.fixture
def targets():
    """160 targets of 12 users, scores with many ties; user 11 has none."""
    rng = np.random.default_rng(3)
    user = rng.integers(0, 11, 160)
    label = (rng.random(160) < 0.4).astype(np.float32)
    score = np.clip(np.round(0.4 * label + 0.6 * rng.random(160), 1), 0.05, 0.95)
    return user, label, score


@pytest.mark.parametrize("precision", [0.3, 0.5, 0.85, 0.99])
def test_recall_is_the_best_of_all_thresholds(targets, precision):
    _, label, score = targets
    found = recall_at_precision(label, score, precision)
    assert found == pytest.approx(written_out_recall(label, score, precision))


def test_a_threshold_cannot_pass_through_a_tie():
    labels = np.array([1, 1, 0, 1, 0])
    assert recall_at_precision(labels, np.array([5.0, 4, 3, 2, 1]), 1.0) == pytest.approx(2 / 3)
    # The second positive is tied with the negative: taken together they aren't precise enough.
    assert recall_at_precision(labels, np.array([5.0, 3, 3, 2, 1]), 1.0) == pytest.approx(1 / 3)


def test_a_later_threshold_may_be_precise_again():
    labels = np.array([0, 1, 1, 1, 0])
    assert recall_at_precision(labels, np.arange(5, 0, -1.0), 0.75) == 1.0


def test_a_precision_met_exactly_counts():
    """17 of 20, 34 of 40, …: 0.85 isn't a binary fraction."""
    for n in range(1, 60):
        labels = np.r_[np.ones(17 * n), np.zeros(3 * n)]
        assert recall_at_precision(labels, np.full(20 * n, 0.5), 0.85) == 1.0


def test_out_of_reach_is_zero_and_without_positives_unknown():
    assert recall_at_precision(np.array([0, 1]), np.array([0.9, 0.1]), 0.85) == 0.0
    assert np.isnan(recall_at_precision(np.zeros(3), np.arange(3.0), 0.5))
    assert np.isnan(recall_at_precision(np.zeros(0), np.zeros(0), 0.5))


def test_every_user_once_gives_the_metrics(targets):
    user, label, score = targets
    found = measure(*targets)
    assert found.keys() == set(METRICS)
    assert found["auc"] == pytest.approx(auc(label, score), abs=1e-12)
    assert found["gauc"] == pytest.approx(gauc(user, label, score), abs=1e-12)
    log_loss = -np.where(label > 0, np.log(score), np.log(1 - score)).mean()
    assert found["log_loss"] == pytest.approx(log_loss)
    assert found["accuracy"] == pytest.approx(((score >= 0.5) == label).mean())
    for precision in (0.85, 0.5):
        plain = recall_at_precision(label, score, precision)
        assert found[recall_name(precision)] == pytest.approx(plain)


def test_a_resample_is_its_users_targets_repeated(targets, monkeypatch):
    monkeypatch.setattr("modules.metrics.resampled._CHUNK", 3 * len(targets[0]))
    user, label, score = targets
    counts = draw_users(12, resamples=10)
    found = resampled(user, label, score, counts)
    for r, drawn in enumerate(counts):
        picked = np.repeat(np.arange(len(user)), drawn[user])
        # A user drawn twice is two users to GAUC's groups, whose mean is the same.
        again = measure(user[picked], label[picked], score[picked])
        for name in METRICS:
            assert found[name][r] == pytest.approx(again[name], abs=1e-12), name


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_alone_is_what_it_is_among_all(targets, metric):
    counts = draw_users(12, resamples=10)
    alone = resampled(*targets, counts, [metric])
    assert list(alone) == [metric]
    np.testing.assert_array_equal(alone[metric], resampled(*targets, counts)[metric])


def test_what_a_resample_lacks_is_unknown():
    user, label, score = np.array([0, 0, 1]), np.array([1, 0, 0]), np.array([0.9, 0.1, 0.2])
    found = resampled(user, label, score, np.array([[0, 2], [1, 1]], np.int32))
    assert np.isnan(found["auc"][0]) and np.isnan(found["gauc"][0])
    assert np.isnan(found[recall_name(0.5)][0])
    assert found["auc"][1] == found["gauc"][1] == 1.0


def test_draws_are_of_all_users_and_repeat():
    counts = draw_users(7, resamples=50, seed=1)
    assert counts.shape == (50, 7) and (counts.sum(axis=1) == 7).all()
    assert (counts == draw_users(7, resamples=50, seed=1)).all()
    assert (counts != draw_users(7, resamples=50, seed=2)).any()
    assert (counts.mean(axis=0) > 0.5).all()


def test_p_is_the_share_of_all_possible_resamples():
    """Three users whose AUC differences are 3, 1 and -2: all 27 resamples written out."""
    gain = np.array([3.0, 1.0, -2.0])
    sums = np.array([sum(gain[list(d)]) for d in itertools.product(range(3), repeat=3)])
    exact = 2 * (sums <= 0).mean()
    estimated = p_value(draw_users(3, resamples=20_000) @ gain)
    assert estimated == pytest.approx(exact, abs=0.02)
    assert p_value(-(draw_users(3, resamples=20_000) @ gain)) == estimated


def test_alike_is_never_different_and_always_better_is():
    assert p_value(np.zeros(1_000)) == 1.0
    assert p_value(np.ones(1_000)) == pytest.approx(2 / 1_001)
    assert p_value(-np.ones(1_000)) == pytest.approx(2 / 1_001)
    assert p_value(np.r_[np.nan, np.ones(999)]) == pytest.approx(2 / 1_000)
    assert np.isnan(p_value(np.full(9, np.nan)))


def test_a_better_model_is_told_from_a_copy(targets):
    user, label, score = targets
    rng = np.random.default_rng(0)
    worse = np.clip(score + rng.normal(0, 0.5, len(score)), 0.01, 0.99)
    counts = draw_users(12)
    base = resampled(user, label, score, counts)
    copy, other = (resampled(user, label, s, counts) for s in (score.copy(), worse))
    assert p_value(base["auc"] - copy["auc"]) == 1.0
    assert p_value(base["auc"] - other["auc"]) < 0.05
