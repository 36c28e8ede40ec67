"""GAUC: the impression-weighted mean of per-user AUC (KEEP, eq. 7).

    GAUC = Σ_u n_u · AUC_u / Σ_u n_u

over the users u with both classes among their n_u labelled impressions; a user with one class
has no AUC and is left out of both sums. A tie counts half.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class GroupedAuc(NamedTuple):
    """AUC of every group that occurs, ordered by group id."""

    auc: np.ndarray
    """float64 [G]; NaN for a group with one class."""
    size: np.ndarray
    """int64 [G], impressions."""


def auc_per_group(groups: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> GroupedAuc:
    """AUC of each group, by the rank sum (Mann-Whitney); O(N log N), no loop over groups.

    Args:
      groups: int64 [N], the group (user) of each impression, in any order.
      labels: [N], 1 or 0.
      scores: [N].
    """
    if not len(groups):
        return GroupedAuc(np.zeros(0), np.zeros(0, np.int64))
    order = np.lexsort((scores, groups))
    groups, scores, positive = groups[order], scores[order], labels[order] > 0

    new_group = np.r_[True, groups[1:] != groups[:-1]]
    new_tie = new_group | np.r_[True, scores[1:] != scores[:-1]]
    group_start, tie_start = np.flatnonzero(new_group), np.flatnonzero(new_tie)
    count = np.diff(np.r_[group_start, len(groups)])
    tie_size = np.diff(np.r_[tie_start, len(groups)])
    # Tied impressions share the mean of their 1-based ranks within the group.
    rank: np.ndarray = np.repeat(tie_start + (tie_size + 1) / 2, tie_size) - np.repeat(
        group_start, count
    )

    positives = np.add.reduceat(positive.astype(np.int64), group_start)
    rank_sum = np.add.reduceat(np.where(positive, rank, 0.0), group_start)
    pairs = positives * (count - positives)
    wins = rank_sum - positives * (positives + 1) / 2
    auc = np.full(len(count), np.nan)
    np.divide(wins, pairs, out=auc, where=pairs > 0)
    return GroupedAuc(auc, count)


def gauc(groups: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    """GAUC (eq. 7) of labelled impressions; NaN if no group has both classes.

    Args: as of `auc_per_group`.
    """
    auc, count = auc_per_group(groups, labels, scores)
    counted = ~np.isnan(auc)
    if not counted.any():
        return float("nan")
    return float(np.average(auc[counted], weights=count[counted]))
