"""Slices by how active a user is (KEEP, Table 7): [0, 50), [50, 150), [150, 300), 300+."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SLICE_FEATURE = "user_activity"


def bucket_names(edges: Sequence[int]) -> list[str]:
    """Names of the buckets that rising edges make, from '[0, first)' to 'last+'."""
    lower = [0, *edges]
    return [f"[{a}, {b})" for a, b in zip(lower, edges, strict=False)] + [f"{lower[-1]}+"]


def bucket_edges(names: Sequence[str]) -> list[int]:
    """The edges behind `bucket_names`, whatever the order of the names."""
    lower = (int(name.strip("[)+").split(",")[0]) for name in names)
    return sorted(lower)[1:]


def bucket_of(activity: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """int64 [N]: which bucket each user's number of events falls into."""
    return np.searchsorted(np.asarray(edges), activity, side="right")
