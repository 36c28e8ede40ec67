"""Where the true item stands among candidates: rank, HR@k, MRR@k, NDCG@k (one true item a row).

PeterRec §4.2 (MRR@5, HR@5) and the leave-one-out protocol of sequential recommendation.
"""

from __future__ import annotations

import numpy as np


def ranks(
    scores_NV: np.ndarray, target_N: np.ndarray, excluded_NV: np.ndarray | None = None
) -> np.ndarray:
    """1 + the candidates scored higher + half of those scored the same.

    Args:
      scores_NV: float; NaN is lowest.
      target_N: int, the true candidate of each row.
      excluded_NV: bool, candidates that don't compete (seen already); never the true one.

    Returns:
      float64 [N], from 1: a tie's expected rank under a fair coin.
    """
    scores_NV = np.where(np.isnan(scores_NV), -np.inf, scores_NV)
    own_N1 = np.take_along_axis(scores_NV, target_N[:, np.newaxis], axis=1)
    competes_NV = np.ones(scores_NV.shape, bool) if excluded_NV is None else ~excluded_NV
    higher_N = ((scores_NV > own_N1) & competes_NV).sum(1)
    competes_NV[np.arange(len(target_N)), target_N] = False
    same_N = ((scores_NV == own_N1) & competes_NV).sum(1)
    return 1 + higher_N + same_N / 2


def hit_rate(ranks_N: np.ndarray, k: int) -> float:
    """HR@k: the share of rows whose true item is among the first k."""
    return float(np.mean(ranks_N <= k))


def reciprocal_rank(ranks_N: np.ndarray, k: int) -> float:
    """MRR@k: the mean of 1/rank, 0 beyond k."""
    return float(np.mean(np.where(ranks_N <= k, 1 / ranks_N, 0)))


def ndcg(ranks_N: np.ndarray, k: int) -> float:
    """NDCG@k with one true item: the mean of 1/log2(1 + rank), 0 beyond k."""
    return float(np.mean(np.where(ranks_N <= k, 1 / np.log2(1 + ranks_N), 0)))
