"""Top-1 routing: which expert takes which token, and what keeps the experts in balance."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras


class Routing(NamedTuple):
    """A router's decision about T tokens, of which padding tokens have no part in anything."""

    expert_T: tf.Tensor
    """int32: the token's expert; `num_experts` for a padding token, which has none."""
    gate_T: tf.Tensor
    """float32: the router's probability of that expert; 0 for a padding token."""
    load_balance_loss: tf.Tensor
    """float32 scalar; 1 at perfect balance (0 without tokens)."""
    z_loss: tf.Tensor
    """float32 scalar."""
    load_E: tf.Tensor
    """float32: the fraction of tokens each expert gets; sums to 1 (0 without tokens)."""


class Router(keras.layers.Layer):
    """h(x) of eq. 6: a linear layer from a token to one logit an expert, always in float32."""

    def __init__(self, num_experts: int, **kwargs: Any):
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.num_experts = num_experts
        # A tenth of the usual scale keeps early training stable (Switch §2.4).
        initializer = keras.initializers.VarianceScaling(0.1, "fan_in", "truncated_normal")
        self.logits = keras.layers.Dense(
            num_experts, use_bias=False, kernel_initializer=initializer, dtype="float32"
        )

    def call(self, x_TD: tf.Tensor, mask_T: tf.Tensor) -> Routing:
        """float [T, D], bool [T] (False: padding) -> Routing."""
        return route(self.logits(x_TD), mask_T)

    def get_config(self) -> dict:
        return super().get_config() | {"num_experts": self.num_experts}


def route(logits_TE: tf.Tensor, mask_T: tf.Tensor) -> Routing:
    """Chooses each token's most probable expert.

    Args:
      logits_TE: float32.
      mask_T: bool, False for padding.
    """
    num_experts = logits_TE.shape[-1]
    probability_TE = tf.nn.softmax(logits_TE)
    choice_T = tf.argmax(logits_TE, axis=-1, output_type=tf.int32)
    expert_T = tf.where(mask_T, choice_T, num_experts)
    gate_T = tf.where(mask_T, tf.reduce_max(probability_TE, axis=-1), 0.0)
    load_E = expert_load(expert_T, num_experts)
    return Routing(
        expert_T=expert_T,
        gate_T=gate_T,
        load_balance_loss=load_balance_loss(probability_TE, load_E, mask_T),
        z_loss=z_loss(logits_TE, mask_T),
        load_E=load_E,
    )


def expert_load(expert_T: tf.Tensor, num_experts: int) -> tf.Tensor:
    """int32 [T] (`num_experts`: padding) -> float32 [E], the fraction of tokens each one gets."""
    count_E = tf.cast(tf.math.bincount(expert_T, minlength=num_experts + 1), tf.float32)[
        :num_experts
    ]
    return tf.math.divide_no_nan(count_E, tf.reduce_sum(count_E))


def load_balance_loss(probability_TE: tf.Tensor, load_E: tf.Tensor, mask_T: tf.Tensor) -> tf.Tensor:
    """E · Σ_e f_e · P_e, f the load and P the mean probability of an expert.

    Differentiable through P only. Reference: Fedus et al., 2021 (Switch), eq. 4-6, without α.
    """
    mean_E = _mean_over_tokens(probability_TE, mask_T)
    return probability_TE.shape[-1] * tf.reduce_sum(tf.stop_gradient(load_E) * mean_E)


def z_loss(logits_TE: tf.Tensor, mask_T: tf.Tensor) -> tf.Tensor:
    """Mean of logsumexp(logits)²: keeps logits small. Zoph et al., 2022 (ST-MoE), eq. 5."""
    return _mean_over_tokens(tf.square(tf.reduce_logsumexp(logits_TE, axis=-1)), mask_T)


def _mean_over_tokens(x_T: tf.Tensor, mask_T: tf.Tensor) -> tf.Tensor:
    """Mean of [T, ...] over the tokens that aren't padding; 0 if all are."""
    weight_T = tf.cast(mask_T, x_T.dtype)
    return tf.math.divide_no_nan(tf.tensordot(weight_T, x_T, axes=1), tf.reduce_sum(weight_T))
