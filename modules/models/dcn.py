"""DCN-V2's heads: cross layers over the fields, then a deep network (TensorFlow Recommenders')."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from data.spec import Spec, Task
from modules.layers.factorization import side_by_side
from modules.layers.tower import Tower
from modules.models.factorized_heads import FactorizedHeads
from modules.models.tables import Tables
from modules.models.towers import task_tower

_NUM_CROSSES = 2


class DCN(keras.layers.Layer):
    """x_{l+1} = x_0 ⊙ (U_l V_lᵀ x_l + b_l) + x_l from x_0 = [v_1, …, v_F]; y = deep(x_L)

    (Wang et al. 2021, "DCN V2", eq. 2, stacked.) Each layer raises the products' degree by one; L
    is 2.

    Args:
      deep: ends in the logits, with their bias.
      rank: of U_l V_lᵀ; saves weights where it is less than half of F·D.
    """

    def __init__(self, deep: Tower, rank: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.deep = deep
        self.crosses = [
            tfrs.layers.dcn.Cross(projection_dim=rank, name=f"cross_{i}", dtype="float32")
            for i in range(_NUM_CROSSES)
        ]

    def call(self, fields_BKFD: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float32 [B, K, F, D] -> logits [B, K, num_logits]."""
        x0 = x = side_by_side(fields_BKFD)
        for cross in self.crosses:
            x = cross(x0, x)
        return self.deep(x, training=training)


def dcn(spec: Spec, tables: Tables) -> FactorizedHeads:
    """Each task's deep part is its tower, the rank `model.hidden_dim`."""

    def readout(task: Task) -> DCN:
        return DCN(task_tower(spec, task), spec.model.hidden_dim, name=task.name)

    return FactorizedHeads(spec, tables, readout)
