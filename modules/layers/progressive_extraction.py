"""PLE: shared experts and each task's own, mixed level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from modules.layers.experts import ExpertGate, Experts


class ProgressiveExtraction(keras.layers.Layer):
    """Levels of extraction (PLE; Tang et al., 2020): x⁰_k = x⁰_s = x, and at level j

        x^j_k = g_k(x^(j-1)_k) · [f_k(x^(j-1)_k), f_s(x^(j-1)_s)]
        x^j_s = g_s(x^(j-1)_s) · [f_1(x^(j-1)_1), …, f_K(x^(j-1)_K), f_s(x^(j-1)_s)]

    f experts, g softmax gates. The last level has no x_s. One level is their CGC.

    Args:
      tasks: their names.
      task_experts: of each task, at each level.
      shared_experts: at each level; 0 for none.
      num_levels: at least 1.
      dim: F, of an expert's output.
      dropout: rate, of the experts' outputs.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        task_experts: int,
        shared_experts: int,
        num_levels: int,
        dim: int,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._tasks = tuple(tasks)
        self.levels = [
            _Level(
                tasks,
                task_experts,
                shared_experts,
                dim,
                dropout,
                last=level == num_levels - 1,
                name=f"level_{level}",
                dtype=self.dtype_policy,
            )
            for level in range(num_levels)
        ]

    def call(
        self, x: tf.Tensor, tasks: Sequence[str], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """float [..., S] -> {task: [..., F]} of `tasks`."""
        shared, own = x, dict.fromkeys(self._tasks, x)
        for level in self.levels[:-1]:
            shared, own = level(shared, own, training=training)
        asked = {task: own[task] for task in tasks}
        return self.levels[-1](shared, asked, training=training)[1]


class _Level(keras.layers.Layer):
    def __init__(
        self,
        tasks: Sequence[str],
        task_experts: int,
        shared_experts: int,
        dim: int,
        dropout: float,
        last: bool,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        policy = self.dtype_policy

        def experts(count: int, name: str) -> Experts:
            return Experts(count, dim, dropout, name=f"experts_{name}", dtype=policy)

        def gate(count: int, name: str) -> ExpertGate:
            return ExpertGate(count, name=f"gate_{name}", dtype=policy)

        # Layers called as a task can't be in the way: theirs have a prefix.
        self.own = {task: experts(task_experts, f"of_{task}") for task in tasks}
        self.gates = {task: gate(task_experts + shared_experts, f"of_{task}") for task in tasks}
        self.shared = experts(shared_experts, "shared") if shared_experts else None
        self.shared_gate = None
        if shared_experts and not last:
            self.shared_gate = gate(len(tasks) * task_experts + shared_experts, "shared")

    def call(
        self, shared: tf.Tensor, own: Mapping[str, tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """x_s and x_k of the level before -> this one's; `shared` as it is without a gate."""
        experts = {task: self.own[task](x, training=training) for task, x in own.items()}
        common = [self.shared(shared, training=training)] if self.shared else []
        mixed = {
            task: self.gates[task](own[task], tf.concat([experts[task], *common], axis=-2))
            for task in own
        }
        if self.shared_gate is not None:
            shared = self.shared_gate(shared, tf.concat([*experts.values(), *common], axis=-2))
        return shared, mixed
