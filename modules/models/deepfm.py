"""DeepFM's heads: a factorization machine beside a deep network over the same fields."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.layers.factorization import bi_interaction, side_by_side
from modules.layers.tower import Tower
from modules.models.factorized_heads import FactorizedHeads
from modules.models.tables import Tables
from modules.models.towers import task_tower


class DeepFM(keras.layers.Layer):
    """y = <w, x> + <h, Σ_{i<j} v_i ⊙ v_j> + deep([v_1, …, v_F])   (Guo et al. 2017, eq. 1-4)

    w is linear in the fields' vectors. h, one in the paper, starts there and is learned: vectors
    are shared by tasks, and a task has one logit or several.

    Args:
      deep: ends in the logits, with their bias.
      num_logits: of them.
    """

    def __init__(self, deep: Tower, num_logits: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.deep = deep
        self.linear = keras.layers.Dense(num_logits, use_bias=False, dtype="float32")
        self.pairs = keras.layers.Dense(
            num_logits, use_bias=False, kernel_initializer="ones", dtype="float32"
        )

    def call(self, fields_BKFD: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float32 [B, K, F, D] -> logits [B, K, num_logits]."""
        flat = side_by_side(fields_BKFD)
        shallow = self.linear(flat) + self.pairs(bi_interaction(fields_BKFD))
        return shallow + self.deep(flat, training=training)


def deepfm(spec: Spec, tables: Tables) -> FactorizedHeads:
    """Each task's deep part is its tower."""

    def readout(task: Task) -> DeepFM:
        return DeepFM(task_tower(spec, task), len(task.classes or (None,)), name=task.name)

    return FactorizedHeads(spec, tables, readout)
