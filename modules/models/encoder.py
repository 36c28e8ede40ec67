"""What every encoder is: events in, one vector an event out, and how they become H."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec
from modules.features import Batch
from modules.layers.adapter import Patch
from modules.layers.pooling import POOLINGS, Pooling


class Encoded(NamedTuple):
    """hidden: h_o float32 [B, 1 + L, D], index 0 is the leading token; mask: bool [B, 1 + L];
    aux: router statistics, one per MoE-FFN; layers: what the first block read and what each block
    made, [B, 1 + L, D], of a `LayeredEncoder`."""

    hidden: tf.Tensor
    mask: tf.Tensor
    aux: tuple
    layers: tuple[tf.Tensor, ...] = ()


class Events(NamedTuple):
    """What heads read that look at single events: hidden float32 [B, L, D], without the leading
    token; visible bool [B, K, L]: which of them each target may see."""

    hidden: tf.Tensor
    visible: tf.Tensor


class Encoder(Protocol):
    """A Keras layer, called as below on the sequence and context features of a batch.

    Under `sequence.targets: causal` no position may depend on a later one.

    Attributes:
      pooling: how h_o becomes the user representation H.
      trainable: a Keras layer's.
    """

    pooling: Pooling
    trainable: bool

    def __call__(self, batch: Batch, training: bool = False) -> Encoded: ...


def pooling_of(spec: Spec, own: Pooling) -> Pooling:
    """What the spec asks for, else the encoder's own."""
    return POOLINGS[spec.model.pooling] if spec.model.pooling else own


class LayeredEncoder(Encoder, Protocol):
    """An encoder of `data.architectures.LAYERED`: what it is tuned by.

    Attributes:
      blocks: in order; each takes a `patch`, and its `insertions` name the places for one.
    """

    blocks: Sequence[keras.layers.Layer]

    @property
    def stages(self) -> Sequence[Sequence[keras.layers.Layer]]:
        """All of its layers in order, in groups that are tuned together, the input's first."""

    def __call__(
        self, batch: Batch, training: bool = False, patches: Sequence[Patch] | None = None
    ) -> Encoded:
        """patches: one a block, another task's on the same weights; None for none."""
