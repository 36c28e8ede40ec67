"""Recall at a precision: how many positives can be reached at most (SuperMoE Table 4)."""

from __future__ import annotations

import numpy as np

_ROUNDING = 1e-9


def recall_at_precision(labels: np.ndarray, scores: np.ndarray, precision: float) -> float:
    """The largest recall of a threshold whose precision is at least `precision`.

    A threshold takes all targets of a score or none: what is tied can't be told apart.

    Args:
      labels: [N], 1 for positives and 0 for negatives; no missing ones.
      scores: [N], any monotone score.
      precision: in (0, 1].

    Returns:
      In [0, 1]; 0 where no threshold is that precise, NaN without a positive.
    """
    order = np.argsort(-scores, kind="stable")
    ends = threshold_ends(scores[order])
    positive = labels[order] > 0
    above = np.cumsum(positive)[ends], np.cumsum(~positive)[ends]
    return float(best_recall(*above, precision))


def threshold_ends(falling: np.ndarray) -> np.ndarray:
    """int64 [T]: of falling scores [N], the places of the last of each run of equal ones."""
    return np.flatnonzero(np.r_[falling[1:] != falling[:-1], [True] * bool(len(falling))])


def best_recall(
    true_positives: np.ndarray, false_positives: np.ndarray, precision: float
) -> np.ndarray:
    """`recall_at_precision` of counts above each of T falling thresholds, the last one takes all.

    Args:
      true_positives, false_positives: int [..., T], rising.

    Returns:
      float64 [...].
    """
    if not true_positives.shape[-1]:
        return np.full(true_positives.shape[:-1], np.nan)
    reached = true_positives * (1 - precision + _ROUNDING) >= false_positives * precision
    # They rise: the last threshold that is precise enough has the most.
    last = reached.shape[-1] - 1 - np.argmax(reached[..., ::-1], axis=-1)
    best = np.take_along_axis(true_positives, last[..., np.newaxis], axis=-1)[..., 0]
    best = np.where(reached.any(axis=-1), best, 0)
    positives = true_positives[..., -1]
    return np.divide(best, positives, out=np.full(best.shape, np.nan), where=positives > 0)
