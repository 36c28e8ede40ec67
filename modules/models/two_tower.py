"""KEEP's decomposition: user and item meet in a product only, so each can be stored by itself."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import Batch
from modules.layers.feature_projection import FeatureProjection
from modules.layers.tower import Tower
from modules.models.tables import Tables
from modules.models.towers import task_tower


class TwoTower(keras.layers.Layer):
    """A task's logits are linear in K̂_u ⊙ K̂_i (KEEP §5.2.1), both `model.hidden_dim` wide.

    K̂_u is a tower over H, K̂_i one over the candidate; all tasks share them, and the tasks' own
    contexts aren't read. A task per user has a tower over H.
    """

    def __init__(self, spec: Spec, tables: Tables, name: str = "heads"):
        super().__init__(name=name, autocast=False)
        sizes = spec.model
        self._towers = {t.name: task_tower(spec, t) for t in spec.tasks if t.per == "user"}
        self._of_product = {
            t.name: keras.layers.Dense(len(t.classes or (None,)), dtype="float32", name=t.name)
            for t in spec.tasks
            if t.per == "impression"
        }
        if self._of_product:
            self._user = Tower(sizes.tower_dims, sizes.hidden_dim, sizes.dropout, name="user")
            self._item = Tower(sizes.tower_dims, sizes.hidden_dim, sizes.dropout, name="item")
            self._project_candidate = FeatureProjection(
                spec.scope("candidate"), tables, sizes.hidden_dim, sizes.dropout
            )

    def call(
        self, user: tf.Tensor, batch: Batch, tasks: tuple[Task, ...], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}."""
        logits = {
            task.name: self._towers[task.name](user, training=training)
            for task in tasks
            if task.per == "user"
        }
        impressions = tuple(task for task in tasks if task.per == "impression")
        if not impressions:
            return logits
        vectors = self.user_vector(user, training), self.item_vector(batch, training)
        return logits | self.of_vectors(*vectors, impressions)

    def of_vectors(
        self, user_vector: tf.Tensor, item_vector: tf.Tensor, tasks: tuple[Task, ...]
    ) -> dict[str, tf.Tensor]:
        """K̂_u and K̂_i, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]} of tasks per
        impression."""
        product = user_vector * item_vector
        return {task.name: self._of_product[task.name](product) for task in tasks}

    def user_vector(self, user: tf.Tensor, training: bool = False) -> tf.Tensor:
        """K̂_u: H float32 [..., D] -> [..., D]."""
        return self._user(user, training=training)

    def item_vector(self, batch: Batch, training: bool = False) -> tf.Tensor:
        """K̂_i of the candidates, float32 [B, K, D]."""
        candidate = self._project_candidate(batch, training=training)
        return self._item(tf.cast(candidate, tf.float32), training=training)
