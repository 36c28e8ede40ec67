"""Heads over fields: one vector for H, each of the candidate's channels, each of the context's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.channels import Channel
from data.spec import Spec, Task
from modules.features import Batch
from modules.layers.field_embedding import FieldEmbedding
from modules.models.tables import Tables


class FactorizedHeads(keras.layers.Layer):
    """readout_k([v_H, v of the candidate's channels, v of the context that task k may see]).

    All tasks share the vectors, `model.hidden_dim` wide. The history is one field, of many values:
    H is their mean. A product of two of its channels is the same for every candidate, so it ranks
    nothing; those between a channel of the history and one of the candidate are in v_H ⊙ v.
    Tasks per user have no candidate's fields.

    Args:
      readout: a task -> a layer, (fields float32 [B, K, F, D], training) -> float32 logits
        [B, K, 1 or classes].
    """

    def __init__(
        self, spec: Spec, tables: Tables, readout: Callable[[Task], Any], name: str = "heads"
    ):
        super().__init__(name=name, autocast=False)
        dim = spec.model.hidden_dim
        self._of_user = keras.layers.Dense(dim, use_bias=False, name="of_user")
        if spec.scope("candidate"):
            self._candidate = FieldEmbedding(spec.scope("candidate"), tables, dim)
        self._context = None
        self._seen: dict[str, list[int]] = {}
        """Each task's context channels, by their places among the fields."""
        if channels := _seen_context(spec):
            self._context = FieldEmbedding(channels, tables, dim)
            places = list(enumerate(self._context.channels))
            for task in spec.tasks:
                seen = spec.context_for(task)
                self._seen[task.name] = [place for place, channel in places if channel in seen]
        self._readouts = {task.name: readout(task) for task in spec.tasks}

    def call(
        self, user: tf.Tensor, batch: Batch, tasks: tuple[Task, ...], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}."""
        shared = {"user": [tf.cast(self._of_user(user), tf.float32)[:, :, tf.newaxis]]}
        if any(task.per == "impression" for task in tasks):
            offered = tf.cast(self._candidate(batch), tf.float32)
            shared["impression"] = [*shared["user"], offered]
        if self._context is not None:  # the same for every target
            context = tf.cast(self._context(batch), tf.float32)[:, tf.newaxis]
            context = tf.repeat(context, tf.shape(user)[1], axis=1)
        logits = {}
        for task in tasks:
            seen = self._seen.get(task.name)
            own = [tf.gather(context, seen, axis=2)] if seen else []
            fields = tf.concat([*shared[task.per], *own], axis=2)
            logits[task.name] = self._readouts[task.name](fields, training=training)
        return logits


def _seen_context(spec: Spec) -> tuple[Channel, ...]:
    """Context channels that any task may see."""
    of_tasks = [spec.context_for(task) for task in spec.tasks]
    return tuple(c for c in spec.scope("context") if any(c in seen for seen in of_tasks))
