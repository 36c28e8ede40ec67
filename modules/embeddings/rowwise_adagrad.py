"""Adagrad with one float of state a row: an optimizer whose cost is flat in a table's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras


@keras.saving.register_keras_serializable("user_representations")
class RowwiseAdagrad(keras.optimizers.Optimizer):
    """For each row r that has a gradient g_r in R^dim,

        a_r += mean(g_r²);   w_r -= learning_rate · g_r / sqrt(a_r + epsilon)

    Rows without a gradient are neither read nor written. Duplicate ids of one step are summed
    before the square (Keras does so before `update_step`). A dense gradient updates every
    row by the same rule; a vector or scalar is one row per element.

    Reference: Duchi et al., 2011; row-wise as in DLRM (Naumov et al., 2019) and FBGEMM.

    Args:
      learning_rate: a float or a `LearningRateSchedule`.
      initial_accumulator_value: start of every a_r; damps a row's first steps.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.05,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-10,
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
            accumulator.scatter_add(tf.IndexedSlices(_mean_square(values), rows))
            scale = learning_rate * tf.math.rsqrt(tf.gather(accumulator, rows) + self.epsilon)
            variable.scatter_sub(tf.IndexedSlices(_times_row(values, scale), rows))
        else:
            accumulator.assign_add(_mean_square(gradient))
            scale = learning_rate * tf.math.rsqrt(accumulator + self.epsilon)
            variable.assign_sub(_times_row(gradient, scale))

    def get_config(self) -> dict:
        return super().get_config() | {
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }


def _mean_square(gradient: tf.Tensor) -> tf.Tensor:
    """[rows, ...] -> [rows]."""
    return tf.reduce_mean(tf.square(gradient), axis=list(range(1, gradient.shape.rank)))


def _times_row(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """[rows, ...] · [rows], broadcast over the trailing axes."""
    trailing = [1] * (x.shape.rank - scale.shape.rank)
    return x * tf.reshape(scale, tf.concat([tf.shape(scale), tf.constant(trailing, tf.int32)], 0))
