"""AUC: the probability that a positive is scored above a negative."""

from __future__ import annotations

import numpy as np

from modules.metrics.gauc import auc_per_group


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Exact area under the ROC curve; a tie counts half.

    Args:
      labels: [N], 1 for positives and 0 for negatives; no missing ones.
      scores: [N], any monotone score.

    Returns:
      In [0, 1]; NaN unless both classes occur.
    """
    if not len(labels):
        return float("nan")
    return float(auc_per_group(np.zeros(len(labels), np.int64), labels, scores).auc[0])
