"""What every encoder is: events in, one vector an event out, and how they become H."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf

from modules.features import Batch
from modules.layers.pooling import Pooling


class Encoded(NamedTuple):
    """hidden: h_o float32 [B, 1 + L, D], index 0 is the leading token; mask: bool [B, 1 + L];
    aux: router statistics, one per MoE-FFN."""

    hidden: tf.Tensor
    mask: tf.Tensor
    aux: tuple


class Encoder(Protocol):
    """A Keras layer, called as below on the sequence and context features of a batch.

    Under `sequence.targets: causal` no position may depend on a later one.

    Attributes:
      pooling: how h_o becomes the user representation H.
    """

    pooling: Pooling

    def __call__(self, batch: Batch, training: bool = False) -> Encoded: ...
