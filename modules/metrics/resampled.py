"""Metrics of a binary task over users that are drawn again and again: the bootstrap's inside.

A resample takes every target of a user as often as the user is drawn; drawing each user once gives
the metrics themselves, so a figure and its uncertainty come from one piece of code.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from modules.metrics.gauc import auc_per_group
from modules.metrics.recall_at_precision import best_recall, threshold_ends

PRECISIONS = (0.85, 0.5)
"""Of SuperMoE Table 4."""
_CHUNK = 2**17
"""Resampled targets looked at together: what a processor's cache holds."""
_EPSILON = 1e-7


def recall_name(precision: float) -> str:
    return f"recall@p{100 * precision:.0f}"


METRICS = ("auc", "gauc", "log_loss", "accuracy", *(recall_name(p) for p in PRECISIONS))
_OF_THRESHOLDS = frozenset({"auc", *(recall_name(p) for p in PRECISIONS)})
LOWER_IS_BETTER = frozenset({"log_loss"})


def measure(
    user: np.ndarray, label: np.ndarray, score: np.ndarray, metrics: Collection[str] = METRICS
) -> dict[str, float]:
    """`metrics` over targets as they are; arguments as of `resampled`."""
    once = np.ones((1, int(user.max(initial=-1)) + 1), np.int32)
    found = resampled(user, label, score, once, metrics)
    return {name: float(values[0]) for name, values in found.items()}


def resampled(
    user: np.ndarray,
    label: np.ndarray,
    score: np.ndarray,
    counts: np.ndarray,
    metrics: Collection[str] = METRICS,
) -> dict[str, np.ndarray]:
    """`metrics` in R resamples of the users.

    Args:
      user: int64 [N], in [0, U); label: [N], 1 or 0; score: [N], a probability.
      counts: int32 [R, U], how often each user is drawn.

    Returns:
      float64 [R] of each; NaN where a resample doesn't define it (a class is missing, or for GAUC
      no user has both).
    """
    found: dict[str, np.ndarray] = {}
    if _OF_THRESHOLDS & set(metrics):
        found |= _of_thresholds(user, label, score, counts)
    if "gauc" in metrics:
        found["gauc"] = _gauc(user, label, score, counts)
    if "log_loss" in metrics:
        p = np.clip(score.astype(np.float64), _EPSILON, 1 - _EPSILON)
        loss = -np.log(np.where(label > 0, p, 1 - p))
        found["log_loss"] = _mean(user, loss, np.ones(len(user)), counts)
    if "accuracy" in metrics:
        right = np.equal(score >= 0.5, label > 0)
        found["accuracy"] = _mean(user, right, np.ones(len(user)), counts)
    return {name: found[name] for name in metrics}


def _of_thresholds(
    user: np.ndarray, label: np.ndarray, score: np.ndarray, counts: np.ndarray
) -> dict[str, np.ndarray]:
    """AUC and the recalls, which read the same counts above every threshold."""
    order = np.argsort(-score, kind="stable")
    ends = threshold_ends(score[order])
    found = {name: np.empty(len(counts)) for name in _OF_THRESHOLDS}
    step = max(1, _CHUNK // max(1, len(user)))
    for start in range(0, len(counts), step):
        some = slice(start, start + step)
        drawn = np.take(counts[some], user[order], axis=1)
        above = _counts_above(drawn, label[order] > 0, ends)
        found["auc"][some] = _area(*above)
        for precision in PRECISIONS:
            found[recall_name(precision)][some] = best_recall(*above, precision)
    return found


def _counts_above(
    drawn: np.ndarray, positive: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives above each threshold, int64 [r, T], of drawn targets [r, N]."""
    positives = drawn * positive
    every = [np.cumsum(x, axis=1, dtype=np.int64) for x in (positives, drawn - positives)]
    true, false = (x if len(ends) == x.shape[1] else x[:, ends] for x in every)
    return true, false


def _area(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    """AUC: the area below the points, ties on a slope between two."""
    if not true_positives.shape[1]:
        return np.full(len(true_positives), np.nan)
    high = true_positives.astype(np.float64)
    run = np.diff(false_positives, axis=1).astype(np.float64)
    # Above the first threshold is nothing: a run from 0 at half its height.
    twice = np.einsum("rt,rt->r", run, high[:, 1:] + high[:, :-1])
    twice += false_positives[:, 0] * high[:, 0]
    return _divided(twice / 2, high[:, -1] * false_positives[:, -1])


def _gauc(user: np.ndarray, label: np.ndarray, score: np.ndarray, counts: np.ndarray) -> np.ndarray:
    auc, size = auc_per_group(user, label, score)
    present = np.unique(user)
    counted = ~np.isnan(auc)
    return _mean(present[counted], (auc * size)[counted], size[counted], counts)


def _mean(
    user: np.ndarray, total: np.ndarray, number: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Σ totals / Σ numbers over the users drawn."""
    num_users = counts.shape[1]
    totals = counts @ np.bincount(user, total, num_users)
    return _divided(totals, counts @ np.bincount(user, number, num_users))


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
