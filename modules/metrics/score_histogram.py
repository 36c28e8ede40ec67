"""Positives and negatives counted by score: AUC, ROC and calibration of data of any size.

Scores are probabilities, bucketed evenly in logit space (a rare task's scores, all near 0, get
as fine buckets as a common one's). Histograms add, so Beam merges them in any order. Two scores
of one bucket (0.002 of a logit wide) count as tied: the AUC's error is under 1e-4 unless the
model hardly separates anything (`tests/metrics` and `benchmarks/evaluation` measure it).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

NUM_BUCKETS = 2**15
_MAX_LOGIT = 32.0
_NEGATIVE, _POSITIVE = 0, 1


def count_scores(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """int64 [2, NUM_BUCKETS]: negatives and positives in every bucket of score.

    Args:
      labels: [N], 1 or 0.
      probabilities: [N], in [0, 1].

    Raises:
      ValueError: one isn't a probability.
    """
    bad = ~((probabilities >= 0) & (probabilities <= 1))
    if bad.any():
        raise ValueError(f"{bad.sum()} scores, such as {probabilities[bad][0]}, aren't in [0, 1]")
    p = np.clip(probabilities.astype(np.float64), 1e-15, 1 - 1e-15)
    position = (np.log(p) - np.log1p(-p) + _MAX_LOGIT) * (NUM_BUCKETS / (2 * _MAX_LOGIT))
    bucket = np.clip(position.astype(np.int64), 0, NUM_BUCKETS - 1)
    flat = (labels > 0) * NUM_BUCKETS + bucket
    return np.bincount(flat, minlength=2 * NUM_BUCKETS).reshape(2, NUM_BUCKETS)


def bucket_edges() -> np.ndarray:
    """float64 [NUM_BUCKETS + 1], the buckets' limits as probabilities, from 0 to 1."""
    logits = np.linspace(-_MAX_LOGIT, _MAX_LOGIT, NUM_BUCKETS + 1)
    edges = 1 / (1 + np.exp(-logits))
    edges[0], edges[-1] = 0.0, 1.0
    return edges


def histogram_auc(histogram: np.ndarray) -> float:
    """AUC of a `count_scores` histogram; NaN unless both classes occur."""
    negative, positive = histogram.astype(np.float64)
    pairs = negative.sum() * positive.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / pairs)


class Curve(NamedTuple):
    """Impressions in runs of buckets, by rising score."""

    lower: np.ndarray
    """float64 [P], the smallest probability of each run (inclusive)."""
    upper: np.ndarray
    """float64 [P], the next run's smallest."""
    negatives: np.ndarray
    """int64 [P]."""
    positives: np.ndarray
    """int64 [P]."""
    score: np.ndarray
    """float64 [P], the sum of their scores, to a bucket's width."""


def curve(histogram: np.ndarray, points: int) -> Curve:
    """At most `points` runs of buckets with about equal shares of the impressions."""
    cumulative = np.cumsum(histogram.sum(axis=0))
    shares = cumulative[-1] * np.arange(1, points) / points
    inner = np.searchsorted(cumulative, shares) + 1
    starts = np.unique(np.r_[0, inner[inner < NUM_BUCKETS]])
    edges = bucket_edges()
    scores = histogram.sum(axis=0) * (edges[:-1] + edges[1:]) / 2
    counts = np.add.reduceat(histogram, starts, axis=1)
    return Curve(
        lower=edges[starts],
        upper=edges[np.r_[starts[1:], NUM_BUCKETS]],
        negatives=counts[_NEGATIVE],
        positives=counts[_POSITIVE],
        score=np.add.reduceat(scores, starts),
    )
