"""The evaluation targets of complete users: what every metric reads.

One block holds many users, so that metrics work on arrays, and each of them entirely, so that
a per-user AUC needs no further grouping.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EXTRACT_KEY = "target_rows"
"""Where TFMA's extracts hold a `TargetRows`."""


class TargetRows(NamedTuple):
    """N evaluation targets; a user's targets all stand in one block."""

    user: np.ndarray
    """int64 [N], a fingerprint of the user's id."""
    activity: np.ndarray
    """int64 [N], the user's `user_activity`."""
    values: dict[str, np.ndarray]
    """By `label`, `oracle` and `prediction`: float32 [N], NaN where there is none; [N, classes]
    for a multiclass prediction."""

    def take(self, rows: np.ndarray) -> TargetRows:
        """Those at the given places (int or bool index)."""
        values = {name: array[rows] for name, array in self.values.items()}
        return TargetRows(self.user[rows], self.activity[rows], values)


def label(task: str) -> str:
    return f"label/{task}"


def oracle(task: str) -> str:
    return f"oracle/{task}"


def prediction(task: str, model: str) -> str:
    return f"prediction/{task}/{model}"


def concatenate(blocks: list[TargetRows]) -> TargetRows:
    """All rows of blocks with the same values."""
    return TargetRows(
        np.concatenate([b.user for b in blocks]),
        np.concatenate([b.activity for b in blocks]),
        {k: np.concatenate([b.values[k] for b in blocks]) for k in blocks[0].values},
    )
