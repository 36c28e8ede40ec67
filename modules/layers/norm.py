"""Layer normalisation that several threads may run at once."""

from __future__ import annotations

from typing import Any

import tf_keras as keras

_EPSILON = 1e-5


def layer_norm(**kwargs: Any) -> keras.layers.LayerNormalization:
    """Keras' layer without its fused kernel.

    With an epsilon over 1.001e-5 Keras runs `FusedBatchNormV3`, whose oneDNN kernel (the default
    on x86 in TensorFlow 2.16) corrupts the heap when two threads are in it: a server that answers
    two requests at once dies, TensorFlow's own too.
    """
    return keras.layers.LayerNormalization(epsilon=_EPSILON, **kwargs)
