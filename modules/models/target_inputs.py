"""What a task may know of a target beside H: its candidate, and the context it may see."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import Batch
from modules.layers.feature_projection import FeatureProjection
from modules.models.encoder import Events
from modules.models.tables import Tables


class TargetInput(NamedTuple):
    """shared: float32 [B, K, S], the same for all tasks of a kind (`per`); own: float32 [B, K, C],
    the context this very task may see, or None where it has none."""

    shared: tf.Tensor
    own: tf.Tensor | None

    def with_own(self, x: tf.Tensor) -> tf.Tensor:
        """x float32 [B, K, X] and the task's own context beside it: [B, K, X + C]."""
        return x if self.own is None else tf.concat([x, self.own], axis=-1)


class TargetInputs(keras.layers.Layer):
    """[H, candidate, query(H)·candidate] for tasks per impression, H for tasks per user.

    Args:
      interaction: a layer (candidate [B, K, D], events, batch) -> float32 [B, K, X], appended for
        tasks per impression; None: there is none, and events aren't asked for.
    """

    def __init__(self, spec: Spec, tables: Tables, interaction: Any = None, name: str = "target"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        sizes = spec.model
        self._interaction = interaction
        if spec.scope("candidate"):
            self._project_candidate = FeatureProjection(
                spec.scope("candidate"), tables, sizes.hidden_dim, sizes.dropout
            )
            self._query = keras.layers.Dense(sizes.hidden_dim, name="query")
        self._project_context = {
            task.name: FeatureProjection(
                spec.context_for(task), tables, sizes.hidden_dim, sizes.dropout
            )
            for task in spec.tasks
            if spec.context_for(task)
        }

    def call(
        self,
        user: tf.Tensor,
        batch: Batch,
        tasks: tuple[Task, ...],
        training: bool = False,
        events: Events | None = None,
    ) -> dict[str, TargetInput]:
        """Inputs of `tasks`, by name.

        Args:
          user: H at each target, float32 [B, K, D].
          batch: its candidate and context features.
          events: what `interaction` reads.
        """
        impression = user
        if any(task.per == "impression" for task in tasks):
            candidate = self.candidate(batch, training)
            query = tf.cast(self._query(user), tf.float32)
            parts = [user, candidate, query * candidate]
            if self._interaction is not None:
                parts.append(self._interaction(candidate, events, batch))
            impression = tf.concat(parts, axis=-1)
        return {
            task.name: TargetInput(
                impression if task.per == "impression" else user,
                self._context(task, user, batch, training),
            )
            for task in tasks
        }

    def candidate(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """The candidates' projected channels: float32 [B, K, D]."""
        return tf.cast(self._project_candidate(batch, training=training), tf.float32)

    def _context(
        self, task: Task, user: tf.Tensor, batch: Batch, training: bool
    ) -> tf.Tensor | None:
        if task.name not in self._project_context:
            return None
        context = tf.cast(self._project_context[task.name](batch, training=training), tf.float32)
        return tf.broadcast_to(context[:, tf.newaxis], tf.shape(user))
