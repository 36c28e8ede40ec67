"""MoE feed-forward layer: every token goes through the one expert its router chooses. Eq. 6."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from modules.layers import routing


class MoEAux(NamedTuple):
    """What an MoE layer reports beside its output; all float32."""

    load_balance_loss: tf.Tensor
    z_loss: tf.Tensor
    load_E: tf.Tensor
    """Fraction of tokens the router sends to each expert."""
    dropped_fraction: tf.Tensor
    """Fraction of tokens over their expert's capacity; 0 on the dropless path."""


class MoEFeedForward(keras.layers.Layer):
    """y = Σ_e G_e(x) · FFN_e(x),   FFN_e(x) = w_o,e · relu(w_i,e · x)      (SuperMoE eq. 6)

    with G_e(x) = softmax(h(x))_e for the expert of the largest logit h_e(x), 0 for the others.
    Eq. 6 as printed, softmax(TopK(h(x), 1)), is a softmax over one value: constantly 1, which
    would leave the router without a gradient. Switch (Fedus et al., 2021, eq. 2), which the
    paper cites for its top-1 rule, takes the softmax over all experts first; so do we.

    Two ways to bring tokens to experts:

    - dropless: tokens are partitioned by expert, each expert multiplies exactly the tokens it
      has. Always used at inference, so a token's output doesn't depend on its company.
    - capacity: when training with a `capacity_factor`, each expert takes its first
      C = ceil(capacity_factor · T / E) tokens in one batched product of static shape [E, C, D].
      The rest get 0: the residual around this layer carries them.

    Args:
      num_experts: E.
      hidden_dim: D.
      ffn_dim: F.
      capacity_factor: tokens an expert takes in training as a multiple of T / E, T counting
        padding (so that C is known before the data is); None drops none.
    """

    def __init__(
        self,
        num_experts: int,
        hidden_dim: int,
        ffn_dim: int,
        capacity_factor: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_experts = num_experts
        self.hidden_dim = hidden_dim
        self.ffn_dim = ffn_dim
        self.capacity_factor = capacity_factor
        self.router = routing.Router(num_experts, name="router")
        self.w_in_EDF = self._add_experts("w_in", hidden_dim, ffn_dim)
        self.w_out_EFD = self._add_experts("w_out", ffn_dim, hidden_dim)

    def _add_experts(self, name: str, fan_in: int, fan_out: int) -> tf.Variable:
        # Glorot an expert: Keras' fan rule would count the expert axis as a convolution's field.
        initializer = keras.initializers.TruncatedNormal(stddev=math.sqrt(2 / (fan_in + fan_out)))
        return self.add_weight(name, (self.num_experts, fan_in, fan_out), initializer=initializer)

    def call(
        self, x_BLD: tf.Tensor, mask_BL: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, MoEAux]:
        """Routes and transforms tokens.

        Args:
          x_BLD: float, any number of leading axes.
          mask_BL: bool, False for padding, which is never routed and yields 0.

        Returns:
          [B, L, D] of the compute dtype, and MoEAux.
        """
        x_TD = tf.reshape(x_BLD, [-1, self.hidden_dim])
        plan = self.router(x_TD, tf.reshape(mask_BL, [-1]))
        if training and self.capacity_factor is not None:
            y_TD, dropped = self._with_capacity(x_TD, plan, self.capacity_factor)
        else:
            y_TD, dropped = self._dropless(x_TD, plan), tf.constant(0.0)
        y_TD *= tf.cast(plan.gate_T, y_TD.dtype)[:, tf.newaxis]
        aux = MoEAux(plan.load_balance_loss, plan.z_loss, plan.load_E, dropped)
        return tf.reshape(y_TD, tf.shape(x_BLD)), aux

    def _dropless(self, x_TD: tf.Tensor, plan: routing.Routing) -> tf.Tensor:
        # Partition and stitch are linear and each other's gradient; a sort would be neither.
        parts = self.num_experts + 1
        x_parts = tf.dynamic_partition(x_TD, plan.expert_T, parts)
        token_parts = tf.dynamic_partition(tf.range(tf.shape(x_TD)[0]), plan.expert_T, parts)
        # Unstacking shares the weights' memory, and its gradient is one stack; indexing expert
        # by expert would make E gradients of the size of all experts.
        w_in, w_out = tf.unstack(self.w_in_EDF), tf.unstack(self.w_out_EFD)
        y_parts = [
            tf.matmul(tf.nn.relu(tf.matmul(x, wi)), wo)
            for x, wi, wo in zip(x_parts, w_in, w_out, strict=False)
        ]
        y_parts.append(tf.zeros_like(x_parts[-1]))  # padding
        return tf.dynamic_stitch(token_parts, y_parts)

    def _with_capacity(
        self, x_TD: tf.Tensor, plan: routing.Routing, capacity_factor: float
    ) -> tuple[tf.Tensor, tf.Tensor]:
        E = self.num_experts
        capacity = expert_capacity(tf.shape(x_TD)[0], E, capacity_factor)
        slot_T, token_S = assign_slots(plan.expert_T, E, capacity)
        x_SD = _permute(x_TD, token_S, slot_T)
        x_ECD = tf.reshape(x_SD, [E, capacity, self.hidden_dim])
        y_ECD = tf.matmul(tf.nn.relu(tf.matmul(x_ECD, self.w_in_EDF)), self.w_out_EFD)
        y_TD = _permute(tf.reshape(y_ECD, [-1, self.hidden_dim]), slot_T, token_S)
        routed_T = plan.expert_T < E
        dropped_T = routed_T & (slot_T < 0)
        dropped = tf.math.divide_no_nan(
            tf.reduce_sum(tf.cast(dropped_T, tf.float32)),
            tf.reduce_sum(tf.cast(routed_T, tf.float32)),
        )
        return y_TD, dropped

    def get_config(self) -> dict:
        return super().get_config() | {
            "num_experts": self.num_experts,
            "hidden_dim": self.hidden_dim,
            "ffn_dim": self.ffn_dim,
            "capacity_factor": self.capacity_factor,
        }


def expert_capacity(num_tokens: tf.Tensor, num_experts: int, capacity_factor: float) -> tf.Tensor:
    """ceil(capacity_factor · num_tokens / num_experts); int32 scalar."""
    share = tf.cast(num_tokens, tf.float32) * (capacity_factor / num_experts)
    return tf.cast(tf.math.ceil(share), tf.int32)


def assign_slots(
    expert_T: tf.Tensor, num_experts: int, capacity: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gives each token a slot of its expert, first come first served.

    Args:
      expert_T: int32 in [0, num_experts]; `num_experts` takes no slot.
      capacity: int32 scalar C, slots an expert has.

    Returns:
      slot_T: int32, expert · C + place; -1 where the expert is full or there is none.
      token_S: int32 [E·C], the inverse: the slot's token, -1 where it is empty.
    """
    num_tokens = tf.shape(expert_T)[0]
    chosen_ET = tf.cast(expert_T[tf.newaxis] == tf.range(num_experts)[:, tf.newaxis], tf.int32)
    place_T = tf.reduce_sum(tf.cumsum(chosen_ET, axis=1, exclusive=True) * chosen_ET, axis=0)
    kept_T = (expert_T < num_experts) & (place_T < capacity)
    slot_T = tf.where(kept_T, expert_T * capacity + place_T, -1)
    kept = tf.where(kept_T)
    token_S = tf.tensor_scatter_nd_update(
        tf.fill([num_experts * capacity], -1),
        tf.gather_nd(slot_T, kept)[:, tf.newaxis],
        tf.gather_nd(tf.range(num_tokens), kept),
    )
    return slot_T, token_S


@tf.custom_gradient
def _permute(
    x_ND: tf.Tensor, source_M: tf.Tensor, target_N: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    """y[m] = x[source[m]], 0 where source is -1; `target` is the inverse of `source`.

    Each row is read at most once, so the gradient is the inverse gather, not a scatter-add.
    """

    def gradient(dy_MD: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        return _gather_or_zero(dy_MD, target_N), None, None

    return _gather_or_zero(x_ND, source_M), gradient


def _gather_or_zero(x_ND: tf.Tensor, index_M: tf.Tensor) -> tf.Tensor:
    rows_MD = tf.gather(x_ND, tf.maximum(index_M, 0))
    return tf.where(index_M[:, tf.newaxis] >= 0, rows_MD, tf.zeros([], rows_MD.dtype))
