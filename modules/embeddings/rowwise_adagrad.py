"""Adagrad with one float of state a row: an optimizer whose cost is flat in a table's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from modules.embeddings import adagrad


@keras.saving.register_keras_serializable("user_representations")
class RowwiseAdagrad(keras.optimizers.Optimizer):
    """For each row r that has a gradient g_r in R^dim,

        a_r += mean(g_r²);   w_r -= learning_rate · g_r / sqrt(a_r + epsilon)

    Rows without a gradient are neither read nor written. Duplicate ids of one step are summed
    before the square (Keras does so before `update_step`). A dense gradient updates every
    row by the same rule; a vector or scalar is one row per element.

    The rule is `adagrad`'s, which large tables' shards share.

    Args:
      learning_rate: a float or a `LearningRateSchedule`.
      initial_accumulator_value: start of every a_r; damps a row's first steps.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        initial_accumulator_value: float = adagrad.INITIAL_STATE,
        epsilon: float = adagrad.EPSILON,
        name: str = "RowwiseAdagrad",
        **kwargs: Any,
    ):
        # Keras' default weight_decay=0 is not None: it rewrites the whole table each step.
        # A moving average (use_ema) would do the same.
        if kwargs.pop("weight_decay", None) or kwargs.get("use_ema"):
            raise ValueError("RowwiseAdagrad: weight_decay and use_ema touch every row each step")
        kwargs["jit_compile"] = False  # XLA turns a sparse update into a dense one
        super().__init__(name=name, weight_decay=None, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._accumulators = [self._accumulator_for(v) for v in var_list]
        self._built = True

    def _accumulator_for(self, variable: tf.Variable) -> tf.Variable:
        shape = variable.shape[:1]
        # A callable is evaluated where the variable lives; a tensor would be built on the
        # coordinator and shipped to the parameter server.
        return self.add_variable_from_reference(
            variable,
            "row_accumulator",
            shape=shape,
            initial_value=lambda: tf.fill(
                shape, tf.cast(self.initial_accumulator_value, variable.dtype)
            ),
        )

    def update_step(self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable) -> None:
        learning_rate = tf.cast(self.learning_rate, variable.dtype)
        accumulator = self._accumulators[self._index_dict[self._var_key(variable)]]
        if isinstance(gradient, tf.IndexedSlices):
            rows, values = gradient.indices, gradient.values
            added = adagrad.squared(values, "rowwise_adagrad")
            accumulator.scatter_add(tf.IndexedSlices(added, rows))
            state = tf.gather(accumulator, rows)
            step = adagrad.step(values, state, learning_rate, self.epsilon)
            variable.scatter_sub(tf.IndexedSlices(step, rows))
        else:
            accumulator.assign_add(adagrad.squared(gradient, "rowwise_adagrad"))
            step = adagrad.step(gradient, accumulator, learning_rate, self.epsilon)
            variable.assign_sub(step)

    def get_config(self) -> dict:
        return super().get_config() | {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }
