"""Dilated convolutions along a sequence, and NextItNet's residual block of two (PeterRec §3.2)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from modules.layers.adapter import Patch, unpatched
from modules.layers.norm import layer_norm

KERNEL_SIZE = 3


class DilatedConvolution(keras.layers.Layer):
    """y_i = Σ_k x_{i + offset_k} w_k + b: three taps, `dilation` apart.

    Causal: offsets -2·dilation, -dilation, 0. Otherwise: -dilation, 0, dilation. What is out of
    the sequence reads as zeros. As one matrix product over shifted copies: TensorFlow's CPU
    kernels have no gradient for dilated convolutions.

    Args:
      filters: width of y.
    """

    def __init__(self, filters: int, dilation: int, causal: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self._config = {"filters": filters, "dilation": dilation, "causal": causal}
        self.taps = keras.layers.Dense(filters, dtype=self.dtype_policy)

    def call(self, x_BLD: tf.Tensor) -> tf.Tensor:
        """float [B, L, D] -> [B, L, filters]; zeros in padding are the caller's business."""
        dilation, length = self._config["dilation"], tf.shape(x_BLD)[1]
        reach = (KERNEL_SIZE - 1) * dilation
        before = reach if self._config["causal"] else reach // 2
        padded = tf.pad(x_BLD, [[0, 0], [before, reach - before], [0, 0]])
        shifted = [padded[:, k * dilation : k * dilation + length] for k in range(KERNEL_SIZE)]
        return self.taps(tf.concat(shifted, axis=-1))

    def get_config(self) -> dict:
        return super().get_config() | self._config


class DilatedResidualBlock(keras.layers.Layer):
    """E + relu(LN_2(ψ_2(relu(LN_1(ψ_1(E))))))  (PeterRec eq. 3-4; Yuan et al. 2019, NextItNet)

    Args:
      hidden_dim: D.
      dilations: of ψ_1 and ψ_2.
      causal: eq. 4's causal or non-causal convolutions.

    Attributes:
      insertions: eq. 12's places of patches, by insertion.
      layers: ψ_1 with LN_1, ψ_2 with LN_2.
    """

    insertions = {
        "serial": ("convolution_0", "convolution_1"),
        "serial_after": ("activation_1",),
        "parallel": ("convolution_0", "convolution_1"),
        "parallel_after": ("activation_0", "activation_1"),
    }

    def __init__(self, hidden_dim: int, dilations: tuple[int, int], causal: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self._config = {"hidden_dim": hidden_dim, "dilations": dilations, "causal": causal}
        policy = self.dtype_policy
        self.layers = [
            (DilatedConvolution(hidden_dim, d, causal, dtype=policy), layer_norm(dtype=policy))
            for d in dilations
        ]

    def call(self, x_BLD: tf.Tensor, mask_BL: tf.Tensor, patch: Patch = unpatched) -> tf.Tensor:
        """float [B, L, D], bool [B, L] -> [B, L, D]; no position depends on padding."""
        visible_BL1 = tf.cast(mask_BL, x_BLD.dtype)[..., tf.newaxis]
        y_BLD = x_BLD
        for i, (convolution, norm) in enumerate(self.layers):
            given_BLD = y_BLD * visible_BL1
            y_BLD = patch(convolution(given_BLD), given_BLD, place=f"convolution_{i}")
            y_BLD = patch(tf.nn.relu(norm(y_BLD)), given_BLD, place=f"activation_{i}")
        return x_BLD + y_BLD

    def get_config(self) -> dict:
        return super().get_config() | self._config
