"""A tower for every task, nothing shared above H (SuperMoE eq. 8)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import Batch
from modules.layers.tower import Tower
from modules.models.encoder import Events
from modules.models.tables import Tables
from modules.models.target_inputs import TargetInputs


class Towers(keras.layers.Layer):
    """Each task's own tower over [H, candidate, query(H)·candidate, context].

    Args:
      interaction: of `TargetInputs`.
    """

    def __init__(self, spec: Spec, tables: Tables, interaction: Any = None, name: str = "heads"):
        super().__init__(name=name, autocast=False)
        self.reads_events = interaction is not None
        self._inputs = TargetInputs(spec, tables, interaction)
        self._towers = {task.name: task_tower(spec, task) for task in spec.tasks}

    def call(
        self,
        user: tf.Tensor,
        batch: Batch,
        tasks: tuple[Task, ...],
        training: bool = False,
        events: Events | None = None,
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}."""
        inputs = self._joined(user, batch, tasks, training, events)
        return {name: self._towers[name](x, training=training) for name, x in inputs.items()}

    def hidden(
        self,
        user: tf.Tensor,
        batch: Batch,
        tasks: tuple[Task, ...],
        events: Events | None = None,
    ) -> dict[str, tf.Tensor]:
        """What the logits are made of: {task: float32 [B, K, last of `model.tower_dims`]}."""
        inputs = self._joined(user, batch, tasks, False, events)
        return {name: self._towers[name].last_hidden(x) for name, x in inputs.items()}

    def candidate(self, batch: Batch) -> tf.Tensor:
        """The candidates as the towers read them: float32 [B, K, D]."""
        return self._inputs.candidate(batch)

    def _joined(
        self,
        user: tf.Tensor,
        batch: Batch,
        tasks: tuple[Task, ...],
        training: bool,
        events: Events | None,
    ) -> dict[str, tf.Tensor]:
        inputs = self._inputs(user, batch, tasks, training=training, events=events)
        return {name: given.with_own(given.shared) for name, given in inputs.items()}


def task_tower(spec: Spec, task: Task, name: str = "tower") -> Tower:
    """The last layers of a task: `model.tower_dims`, then its logits."""
    sizes = spec.model
    num_logits = len(task.classes or (None,))
    return Tower(sizes.tower_dims, num_logits, sizes.dropout, name=f"{name}_{task.name}")
