"""What every weighting of the tasks' losses is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import tensorflow as tf

from modules.features import Batch

LogitsOf = Callable[[tf.Tensor], dict[str, tf.Tensor]]
"""H at every target, float32 [B, K, D] -> {task: logits}."""


class Weighted(NamedTuple):
    """All are shares of the whole batch's (`modules/replicas.py`).

    Attributes:
      total: what training descends: eq. 9, and what λ themselves learn from.
      losses: L_k of eq. 3, by task.
      lambdas: λ_k, by task, for the record.
    """

    total: tf.Tensor
    losses: dict[str, tf.Tensor]
    lambdas: dict[str, tf.Tensor]


class Weighting(Protocol):
    """A function, or a `tf.Module` where λ are variables: they are then part of the model, trained
    by its optimizer and in its checkpoints, and not in its export."""

    def __call__(
        self, user_BKD: tf.Tensor, logits_of: LogitsOf, batch: Batch, step: tf.Tensor
    ) -> Weighted:
        """Weighs a batch's losses.

        Args:
          user_BKD: H at every target, float32.
          logits_of: the heads; asked once.
          batch: its labels.
          step: int64 scalar.
        """
