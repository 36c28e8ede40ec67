"""AdamW in one kernel a variable: on a parameter server each operation is work that adds up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

Rate = Callable[[tf.Tensor], tf.Tensor]
"""Step int64 scalar -> learning rate float32 scalar."""
_BETA_1 = 0.9
_BETA_2 = 0.999
_EPSILON = 1e-7


class AdamW(tf.Module):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019). For a gradient g at step t,

        m ← β₁m + (1 − β₁)g;   v ← β₂v + (1 − β₂)g²
        w ← w − rate · decay · w − rate · √(1 − β₂ᵗ⁺¹) / (1 − β₁ᵗ⁺¹) · m / (√v + ε)

    As Keras' AdamW, which takes some twenty operations a variable, and reads the step and the rate
    over the network for each.

    Must be made in the scope that the variables were made in.

    Args:
      variables: dense ones.
      rate: the learning rate of a step.
      decay: which of the variables decay.
    """

    def __init__(
        self,
        variables: Sequence[tf.Variable],
        rate: Rate,
        weight_decay: float,
        decay: Callable[[tf.Variable], bool],
    ):
        super().__init__(name="adamw")
        self._rate, self._weight_decay = rate, weight_decay
        self._decays = [decay(variable) for variable in variables]
        self.first_moments = [_zeros_beside(variable) for variable in variables]
        self.second_moments = [_zeros_beside(variable) for variable in variables]

    def apply(
        self,
        gradients: Sequence[tf.Tensor | tf.IndexedSlices | None],
        variables: Sequence[tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """One step, in replica context.

        Args:
          gradients: already summed over replicas; None leaves its variable as it is.
          variables: those of the constructor. Not kept: a checkpoint would hold them twice.
          step: int64 scalar, from 0.
        """
        rate = self._rate(step)
        power = tf.cast(step + 1, tf.float32)
        scalars = (rate * self._weight_decay, rate, _BETA_1**power, _BETA_2**power)
        present = [i for i, gradient in enumerate(gradients) if gradient is not None]

        def update_all(
            strategy: tf.distribute.Strategy, changed: list, dense: list, *scalars: tf.Tensor
        ) -> None:
            for i, variable, gradient in zip(present, changed, dense, strict=True):
                strategy.extended.update(
                    variable,
                    _update_and_decay if self._decays[i] else _update,
                    args=(gradient, self.first_moments[i], self.second_moments[i], *scalars),
                    group=False,
                )

        changed = [variables[i] for i in present]
        dense = [tf.convert_to_tensor(gradients[i]) for i in present]
        context = tf.distribute.get_replica_context()
        context.merge_call(update_all, args=(changed, dense, *scalars))


def _zeros_beside(variable: tf.Variable) -> tf.Variable:
    with tf.distribute.get_strategy().extended.colocate_vars_with(variable):
        # A callable is evaluated where the variable lives, not shipped there.
        return tf.Variable(lambda: tf.zeros(variable.shape, variable.dtype), trainable=False)


def _update_and_decay(
    variable: tf.Variable, gradient: tf.Tensor, m: tf.Variable, v: tf.Variable, *scalars: tf.Tensor
) -> tf.Operation | None:
    variable.assign_sub(variable * scalars[0])
    return _update(variable, gradient, m, v, *scalars)


def _update(
    variable: tf.Variable,
    gradient: tf.Tensor,
    m: tf.Variable,
    v: tf.Variable,
    _: tf.Tensor,
    rate: tf.Tensor,
    power_1: tf.Tensor,
    power_2: tf.Tensor,
) -> tf.Operation | None:
    return tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=m.handle,
        v=v.handle,
        beta1_power=power_1,
        beta2_power=power_2,
        lr=rate,
        beta1=_BETA_1,
        beta2=_BETA_2,
        epsilon=_EPSILON,
        grad=gradient,
    )
