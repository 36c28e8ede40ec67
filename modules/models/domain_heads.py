"""Heads with a network for each of two domains, of which a target's own answers."""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import DOMAIN, Batch
from modules.models.tables import Tables
from modules.models.target_inputs import TargetInputs
from modules.models.towers import task_tower


class Networks(Protocol):
    """A Keras layer, and what it learns by beside the tasks."""

    def __call__(
        self, x: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """x [B, K, S] -> the sub-domain's and the super-domain's [B, K, F]; and what
        `auxiliary_loss` needs of them, by names that start with '$'."""

    def auxiliary_loss(
        self, outputs: dict[str, tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """A loss, this replica's share, and values to record, of what `call` gave by name."""


class DomainHeads(keras.layers.Layer):
    """tower_dk([networks(x)_d, context of k]) at a target of domain d, x = [H, candidate,
    query(H)·candidate]; tasks per user have neither candidate nor domain: a tower over H each.
    """

    def __init__(self, spec: Spec, tables: Tables, networks: Networks, name: str = "heads"):
        super().__init__(name=name, autocast=False)
        self._inputs = TargetInputs(spec, tables)
        self._networks = networks
        of_impressions = [task for task in spec.tasks if task.per == "impression"]
        self._of_user = {t.name: task_tower(spec, t) for t in spec.tasks if t.per == "user"}
        self._of_sub = {t.name: task_tower(spec, t, "sub_tower") for t in of_impressions}
        self._of_super = {t.name: task_tower(spec, t, "super_tower") for t in of_impressions}

    def call(
        self, user: tf.Tensor, batch: Batch, tasks: tuple[Task, ...], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}; in training
        also what `auxiliary_loss` needs."""
        inputs = self._inputs(user, batch, tasks, training=training)
        outputs: dict[str, tf.Tensor] = {}
        for name in [task.name for task in tasks if task.per == "user"]:
            given = inputs[name].with_own(inputs[name].shared)
            outputs[name] = self._of_user[name](given, training=training)
        impressions = [task.name for task in tasks if task.per == "impression"]
        if not impressions:
            return outputs
        x = inputs[impressions[0]].shared
        of_sub, of_super, of_networks = self._networks(x, training=training)
        for name in impressions:
            sub, rest = (
                towers[name](inputs[name].with_own(tf.cast(y, tf.float32)), training=training)
                for towers, y in ((self._of_sub, of_sub), (self._of_super, of_super))
            )
            outputs[name] = tf.where(batch[DOMAIN][..., tf.newaxis], sub, rest)
        return outputs | of_networks if training else outputs

    def auxiliary_loss(
        self, outputs: dict[str, tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The networks' own, beside the tasks' losses."""
        return self._networks.auxiliary_loss(outputs, batch)
