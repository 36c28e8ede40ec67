"""Side networks: what many tasks add to H, read off a frozen encoder's layers (LST, §3).

Sung et al. 2022: LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning.
"""

from __future__ import annotations

import tensorflow as tf

_EPSILON = 1e-5


def side_network(
    layers_BSD: tf.Tensor,
    user_BD: tf.Tensor,
    down_TSDd: tf.Tensor,
    down_bias_TSd: tf.Tensor,
    up_TSdD: tf.Tensor,
) -> tf.Tensor:
    """u_t = H + Σ_s relu(norm(h_s) · Down_ts + b_ts) · Up_ts, for tasks t = 1 … T in one product.

    Each term is PeterRec's patch (eq. 10), but beside the encoder: nothing goes back into it, so
    one pass of it does for all tasks. With Up = 0, u_t is H. Up has no bias, as what reads u_t
    has one. `norm` is a layer normalisation without weights, which Down would repeat: layers of
    an encoder differ in scale.

    Args:
      layers_BSD: float32, of each user S pooled layers.
      user_BD: float32, H.
      down_TSDd, down_bias_TSd, up_TSdD: float32, the tasks' weights; d is their bottleneck.

    Returns:
      float32 [B, T, D].
    """
    hidden_BTSd = tf.nn.relu(
        tf.einsum("bsi,tsio->btso", _normalised(layers_BSD), down_TSDd) + down_bias_TSd
    )
    return user_BD[:, tf.newaxis] + tf.einsum("btso,tsod->btd", hidden_BTSd, up_TSdD)


def _normalised(x: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, axes=-1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + _EPSILON)
