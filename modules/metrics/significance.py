"""Whether two models differ by more than the choice of users: the paired bootstrap.

Both models are measured on the same resamples of users (all targets of a user go together, as they
are alike), so what makes a resample easy or hard cancels. How much a model's training varies with
its seed is another question, which a standard deviation over seeds answers.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1_000


def draw_users(num_users: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """int32 [R, U]: how often each user is drawn, U draws a resample. The same for a seed."""
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, num_users), np.int32)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, num_users, num_users), minlength=num_users)
    return counts


def p_value(differences: np.ndarray) -> float:
    """Two-sided: twice the share of resamples in which the sign is the other one, or none.

    Args:
      differences: float64 [R], one model's metric less the other's; NaN ones are left out.

    Returns:
      In (0, 1]; 1 for two that never differ; NaN where no resample defines both.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return float("nan")
    # With one more resample on either side: none of 1,000 is no proof of never.
    sides = ((known <= 0).sum() + 1, (known >= 0).sum() + 1)
    return float(min(1.0, 2 * min(sides) / (len(known) + 1)))
