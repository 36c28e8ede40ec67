"""Shared bottom: one layer for all tasks, then their towers (Caruana, 1997; MMoE §3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.layers.experts import Experts
from modules.models.mixed_heads import MixedHeads
from modules.models.tables import Tables


def shared_bottom(spec: Spec, tables: Tables) -> MixedHeads:
    """Heads over one layer of `hidden_dim`."""
    return MixedHeads(spec, tables, Bottom(spec.model.hidden_dim, spec.model.dropout))


class Bottom(keras.layers.Layer):
    """y_k = f(x), the same for every task: MMoE's only expert."""

    def __init__(self, dim: int, dropout: float = 0.0, name: str = "bottom"):
        super().__init__(name=name)
        self.layer = Experts(1, dim, dropout, name="layer", dtype=self.dtype_policy)

    def call(
        self, x: tf.Tensor, tasks: Sequence[str], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """float [..., S] -> {task: [..., F]} of `tasks`."""
        return dict.fromkeys(tasks, tf.squeeze(self.layer(x, training=training), axis=-2))
