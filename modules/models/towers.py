"""A tower for every task, nothing shared above H (SuperMoE eq. 8)."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import Batch
from modules.layers.tower import Tower
from modules.models.tables import Tables
from modules.models.target_inputs import TargetInputs


class Towers(keras.layers.Layer):
    """Each task's own tower over [H, candidate, query(H)·candidate, context]."""

    def __init__(self, spec: Spec, tables: Tables, name: str = "heads"):
        super().__init__(name=name, autocast=False)
        self._inputs = TargetInputs(spec, tables)
        self._towers = {task.name: task_tower(spec, task) for task in spec.tasks}

    def call(
        self, user: tf.Tensor, batch: Batch, tasks: tuple[Task, ...], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}."""
        logits = {}
        for name, given in self._inputs(user, batch, tasks, training=training).items():
            parts = [given.shared] if given.own is None else [given.shared, given.own]
            logits[name] = self._towers[name](tf.concat(parts, axis=-1), training=training)
        return logits


def task_tower(spec: Spec, task: Task) -> Tower:
    """The last layers of a task: `model.tower_dims`, then its logits."""
    sizes = spec.model
    num_logits = len(task.classes or (None,))
    return Tower(sizes.tower_dims, num_logits, sizes.dropout, name=f"tower_{task.name}")
