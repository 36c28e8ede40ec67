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


def sample_negatives(
    target_N: np.ndarray,
    num_items: int,
    count: int,
    rng: np.random.Generator,
    seen_M2: np.ndarray | None = None,
) -> np.ndarray:
    """Draws other items for each query, uniformly and each at most once (He et al. 2017: 99).

    Args:
      target_N: int, each query's true item, of 0 … num_items - 1.
      seen_M2: int, (query, item) pairs that aren't to be drawn either.

    Returns:
      int64 [N, count].

    Raises:
      ValueError: a query has fewer than `count` items left.
    """
    query_N = np.arange(len(target_N))
    barred = [query_N * num_items + target_N]
    if seen_M2 is not None:
        barred.append(seen_M2[:, 0] * num_items + seen_M2[:, 1])
    barred_keys = np.unique(np.concatenate(barred))
    left_N = num_items - np.bincount(barred_keys // num_items, minlength=len(target_N))
    if len(left_N) and left_N.min() < count:
        query = int(left_N.argmin())
        raise ValueError(
            f"sample_negatives: query {query} has {left_N[query]} items left to draw, but"
            f" {count} are asked for; ask for fewer, or rank all items"
        )
    drawn_NC = np.full((len(target_N), count), -1)
    open_ = np.ones(drawn_NC.shape, bool)
    while open_.any():
        drawn_NC[open_] = rng.integers(num_items, size=open_.sum())
        keys_NC = query_N[:, np.newaxis] * num_items + drawn_NC
        # What was kept comes first among equals, so that it is kept again.
        order = np.lexsort([open_.ravel(), keys_NC.ravel()])
        sorted_keys = keys_NC.ravel()[order]
        repeated = np.zeros(order.shape, bool)
        repeated[order[1:]] = sorted_keys[1:] == sorted_keys[:-1]
        open_ = repeated.reshape(drawn_NC.shape) | np.isin(keys_NC, barred_keys)
    return drawn_NC
