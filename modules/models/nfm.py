"""NFM's heads (PeterRec's NeuFM): a deep network over what the fields say together."""

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


class NFM(keras.layers.Layer):
    """y = <w, x> + deep(dropout(Σ_{i<j} v_i ⊙ v_j))   (He & Chua 2017, eq. 2-7)

    w is linear in the fields' vectors. Without the paper's batch normalisation, as an answer must
    not depend on a batch's company.

    Args:
      deep: ends in the logits, with their bias; one without hidden layers and with weights of one
        makes this a factorization machine.
      num_logits: of them.
      dropout: rate.
    """

    def __init__(self, deep: Tower, num_logits: int, dropout: float = 0.0, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.deep = deep
        self.linear = keras.layers.Dense(num_logits, use_bias=False, dtype="float32")
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, fields_BKFD: tf.Tensor, training: bool = False) -> tf.Tensor:
        """float32 [B, K, F, D] -> logits [B, K, num_logits]."""
        pairs = self.dropout(bi_interaction(fields_BKFD), training=training)
        return self.linear(side_by_side(fields_BKFD)) + self.deep(pairs, training=training)


def nfm(spec: Spec, tables: Tables) -> FactorizedHeads:
    """Each task's deep part is its tower."""

    def readout(task: Task) -> NFM:
        num_logits = len(task.classes or (None,))
        return NFM(task_tower(spec, task), num_logits, spec.model.dropout, name=task.name)

    return FactorizedHeads(spec, tables, readout)
