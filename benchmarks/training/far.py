"""`hybrid` with its parameter servers far away: 50 ms are added to every pull."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from benchmarks.training.contestant import PLACED, Contestant
from modules.training.cluster.config import parse_cluster

PROBLEM = {"batch_size": 8, "hidden_dim": 16, "num_blocks": 1}
"""A short step, so that what a pull costs can be seen beside it."""
_PULL_SECONDS = 0.05
_FETCHERS = 6


def far_contestants(staleness: Mapping[str, int], folder: pathlib.Path) -> list[Contestant]:
    """One hybrid trainer with two parameter servers for each name and staleness."""
    return [
        Contestant(
            name,
            PLACED,
            parse_cluster(
                {
                    "placement": "hybrid",
                    "processes": {"ps": 2},
                    "staleness": bound,
                    "fetchers": _FETCHERS,
                }
            ),
            PROBLEM,
            folder,
            [f"--pull_seconds={_PULL_SECONDS}"],
        )
        for name, bound in staleness.items()
    ]
