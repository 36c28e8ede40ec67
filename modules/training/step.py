"""One training step, the same graph under every placement."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.spec import Phase
from modules.embeddings import adagrad
from modules.embeddings.rowwise_adagrad import RowwiseAdagrad
from modules.embeddings.table import EmbeddingTable, rows_key
from modules.features import Batch
from modules.training.adamw import AdamW

Scalars = dict[str, tf.Tensor]
LossFn = Callable[[Batch, tf.Tensor], tuple[tf.Tensor, Scalars]]
RowGradients = dict[str, tf.Tensor]
"""By large table that is trained: float32 [U, dim], in the order of the batch's distinct rows."""
_CLIP_NORM = 1.0
_WARMUP_FRACTION = 0.05
_FINAL_RATE = 0.1
_UNDECAYED = r"(^|/)(bias|beta|gamma|log_lambda):0$"
"""Weight decay is for what multiplies; anchored, as a task or channel may be called anything."""


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up over 5% of the steps, then a cosine down to a tenth of the peak."""

    def __init__(self, peak: float, num_steps: int):
        self._peak, self._num_steps = peak, num_steps

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        warmup = max(1.0, _WARMUP_FRACTION * self._num_steps)
        progress = tf.clip_by_value((step - warmup) / max(1.0, self._num_steps - warmup), 0.0, 1.0)
        cosine = _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + tf.cos(math.pi * progress))
        return self._peak * tf.minimum((step + 1) / warmup, cosine)

    def get_config(self):
        return {"peak": self._peak, "num_steps": self._num_steps}


class Step(tf.Module):
    """Loss, gradients and the update of everything but large tables.

    Small tables learn by (row-wise) Adagrad, all other weights by AdamW (DESIGN §6). The large
    tables' rows are an input, `rows_<table>`, and their gradients an output: where the rows
    live is the placement's business. Layers and tables that aren't `trainable` have no gradient
    and no optimizer state. Must be made in the scope that `module` was made in.

    Args:
      module: its variables are built.
      loss_fn: (batch, step int64 scalar) -> (loss, values to record), both this replica's
        shares of the whole batch's (`modules/replicas.py`).
      phase: the learning rates and the weight decay.
      num_steps: steps of the phase, for the learning-rate schedule.
    """

    def __init__(self, module: tf.Module, loss_fn: LossFn, phase: Phase, num_steps: int):
        super().__init__(name="step")
        self._loss_fn = loss_fn
        self._tables, self._dense = split_variables(module)
        self.large = {t.name: t for t in tables_of(module) if t.large}
        self.table_optimizer = _table_optimizer(phase)
        self.dense_optimizer = AdamW(
            self._dense,
            WarmupCosine(phase.learning_rate, num_steps),
            phase.weight_decay,
            decay=lambda variable: re.search(_UNDECAYED, variable.name) is None,
        )
        self.table_optimizer.build(self._tables)

    def __call__(self, batch: Batch, step: tf.Tensor) -> tuple[Scalars, RowGradients]:
        """Trains on one replica's part of a batch; called in replica context.

        Returns:
          This replica's shares of `loss`, `gradient_norm` and what `loss_fn` records; and its
          gradients of the batch's rows of each large table that is trained, not yet summed over
          replicas.
        """
        rows = {name: batch[rows_key(name)] for name, t in self.large.items() if t.trainable}
        weights = self._tables + self._dense
        with tf.GradientTape() as tape:
            tape.watch(rows)
            loss, values = self._loss_fn(batch, step)
        gradients, row_gradients = tape.gradient(
            loss, (weights, rows), unconnected_gradients=tf.UnconnectedGradients.NONE
        )
        gradients = sum_gradients(gradients)
        of_tables, of_dense = gradients[: len(self._tables)], gradients[len(self._tables) :]
        of_dense, norm = tf.clip_by_global_norm(of_dense, _CLIP_NORM)
        self.dense_optimizer.apply(of_dense, self._dense, step)
        _apply(self.table_optimizer, of_tables, self._tables)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        values = values | {"loss": loss, "gradient_norm": norm / replicas}
        return values, {name: _by_row(row_gradients[name], rows[name]) for name in rows}


def _table_optimizer(phase: Phase) -> keras.optimizers.Optimizer:
    if phase.table_optimizer == "rowwise_adagrad":
        return RowwiseAdagrad(phase.table_learning_rate)
    return keras.optimizers.Adagrad(
        phase.table_learning_rate,
        initial_accumulator_value=adagrad.INITIAL_STATE,
        epsilon=adagrad.EPSILON,
        weight_decay=None,
        jit_compile=False,
    )


def tables_of(module: tf.Module) -> list[EmbeddingTable]:
    """Every embedding table of a module, each once."""
    return [m for m in module.submodules if isinstance(m, EmbeddingTable)]


def split_variables(module: tf.Module) -> tuple[list[tf.Variable], list[tf.Variable]]:
    """Trainable variables of the small tables, and all others."""
    tables = [v for table in tables_of(module) for v in table.trainable_variables]
    in_tables = {v.ref() for v in tables}
    dense = [v for v in module.trainable_variables if v.ref() not in in_tables]
    return tables, dense


def sum_gradients(gradients: list[Any]) -> list[Any]:
    """Sums gradients over the replicas of a synchronous step; None stays None."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    present = [g for g in gradients if g is not None]
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if g is None else next(summed) for g in gradients]


def _apply(optimizer: keras.optimizers.Optimizer, gradients: list, variables: list) -> None:
    present = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    if present:
        optimizer.apply_gradients(present, skip_gradients_aggregation=True)


def _by_row(gradient: Any, rows: tf.Tensor) -> tf.Tensor:
    """Sums what several lookups of a row brought: -> [U, dim]."""
    if gradient is None:
        return tf.zeros_like(rows)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(
            gradient.values, gradient.indices, tf.shape(rows, gradient.indices.dtype)[0]
        )
    return gradient
