"""MMoE: experts that all tasks share, and a gate for each task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from modules.layers.experts import ExpertGate, Experts


class MultiGateMixture(keras.layers.Layer):
    """y_k = Σ_e g_k(x)_e · f_e(x), g_k(x) = softmax(x · W_k)   (MMoE; Ma et al., 2018, §4.2)

    Args:
      tasks: their names.
      num_experts: E.
      dim: F, of an expert's output.
      dropout: rate, of the experts' outputs.
    """

    def __init__(
        self, tasks: Sequence[str], num_experts: int, dim: int, dropout: float = 0.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.experts = Experts(num_experts, dim, dropout, name="experts", dtype=policy)
        self.gates = {
            task: ExpertGate(num_experts, name=f"gate_{task}", dtype=policy) for task in tasks
        }

    def call(
        self, x: tf.Tensor, tasks: Sequence[str], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """float [..., S] -> {task: [..., F]} of `tasks`."""
        experts = self.experts(x, training=training)
        return {task: self.gates[task](x, experts) for task in tasks}
