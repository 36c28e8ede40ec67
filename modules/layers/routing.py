"""Top-1 routing: which expert takes which token, and what keeps the experts in balance."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras as keras

from modules.replicas import share_of_mean, sum_over_replicas


class Routing(NamedTuple):
    """A router's decision about T tokens, of which padding tokens have no part in anything.

    The losses and the load are this replica's shares (`modules/replicas.py`).
    """

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
    own_E = tokens_per_expert(expert_T, num_experts)
    all_E = sum_over_replicas(own_E)
    num_tokens = tf.reduce_sum(all_E)
    return Routing(
        expert_T=expert_T,
        gate_T=gate_T,
        load_balance_loss=load_balance_loss(probability_TE, all_E, mask_T),
        z_loss=z_loss(logits_TE, mask_T, num_tokens),
        load_E=share_of_mean(own_E, num_tokens),
    )


def tokens_per_expert(expert_T: tf.Tensor, num_experts: int) -> tf.Tensor:
    """int32 [T] (`num_experts`: padding) -> float32 [E]."""
    counts = tf.math.bincount(expert_T, minlength=num_experts + 1)
    return tf.ensure_shape(tf.cast(counts, tf.float32)[:num_experts], [num_experts])


def load_balance_loss(
    probability_TE: tf.Tensor, tokens_E: tf.Tensor, mask_T: tf.Tensor
) -> tf.Tensor:
    """E · Σ_e f_e · P_e, f the share of tokens and P the mean probability of an expert.

    Differentiable through P only. Reference: Fedus et al., 2021 (Switch), eq. 4-6, without α.

    Args:
      tokens_E: tokens of each expert, over all replicas.
    """
    num_tokens = tf.reduce_sum(tokens_E)
    load_E = tf.stop_gradient(share_of_mean(tokens_E, num_tokens))
    mean_E = share_of_mean(_sum_over_tokens(probability_TE, mask_T), num_tokens)
    return probability_TE.shape[-1] * tf.reduce_sum(load_E * mean_E)


def z_loss(logits_TE: tf.Tensor, mask_T: tf.Tensor, num_tokens: tf.Tensor) -> tf.Tensor:
    """Mean of logsumexp(logits)²: keeps logits small. Zoph et al., 2022 (ST-MoE), eq. 5.

    Args:
      num_tokens: float32, over all replicas, padding not counted.
    """
    square_T = tf.square(tf.reduce_logsumexp(logits_TE, axis=-1))
    return share_of_mean(_sum_over_tokens(square_T, mask_T), num_tokens)


def _sum_over_tokens(x_T: tf.Tensor, mask_T: tf.Tensor) -> tf.Tensor:
    """Sum of [T, ...] over the tokens that aren't padding."""
    return tf.tensordot(tf.cast(mask_T, x_T.dtype), x_T, axes=1)
