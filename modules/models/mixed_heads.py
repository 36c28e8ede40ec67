"""Heads that share layers above H: a mixer, then each task's tower."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import Batch
from modules.models.tables import Tables
from modules.models.target_inputs import TargetInputs
from modules.models.towers import task_tower

Mixer = Callable[..., dict[str, tf.Tensor]]
"""A Keras layer, (x [B, K, S], task names, training) -> {task: [B, K, F]}."""


class MixedHeads(keras.layers.Layer):
    """tower_k([mixer(x)_k, context of k]), x = [H, candidate, query(H)·candidate].

    Tasks per user have no candidate: zeros stand there, so all tasks share what is in the mixer.
    """

    def __init__(self, spec: Spec, tables: Tables, mixer: Mixer, name: str = "heads"):
        super().__init__(name=name, autocast=False)
        self._inputs = TargetInputs(spec, tables)
        self._mixer = mixer
        self._towers = {task.name: task_tower(spec, task) for task in spec.tasks}
        of_impressions = any(task.per == "impression" for task in spec.tasks)
        self._padding = 2 * spec.model.hidden_dim if of_impressions else 0

    def call(
        self, user: tf.Tensor, batch: Batch, tasks: tuple[Task, ...], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}."""
        inputs = self._inputs(user, batch, tasks, training=training)
        logits = {}
        for per in sorted({task.per for task in tasks}):
            names = [task.name for task in tasks if task.per == per]
            x = inputs[names[0]].shared
            if per == "user":
                x = tf.pad(x, [[0, 0], [0, 0], [0, self._padding]])
            for name, mixed in self._mixer(x, names, training=training).items():
                given = inputs[name].with_own(tf.cast(mixed, tf.float32))
                logits[name] = self._towers[name](given, training=training)
        return logits

    def candidate(self, batch: Batch) -> tf.Tensor:
        """The candidates as the mixer reads them: float32 [B, K, D]."""
        return self._inputs.candidate(batch)
