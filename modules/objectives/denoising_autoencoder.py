"""AETN's pre-training: masked values, and everything the window held, from H alone.

Zhang et al., 2020: General-Purpose User Embeddings based on Mobile App Usage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.channels import Channel, DenseChannel
from data.spec import Spec
from modules.features import Batch
from modules.objectives.masked_channel_prediction import MaskedChannelPrediction
from modules.objectives.masked_channels import (
    ChannelLoss,
    build_heads,
    channel_values,
    is_present,
)
from modules.objectives.router import router_loss


class DenoisingAutoencoder(tf.Module):
    """Masked channel prediction, plus the reconstruction of each channel's bag of values.

    The input is the masked batch, H of the whole window the bottleneck, the target what the
    window held before masking. A bag is predicted as multi-valued channels are: cross-entropy
    with its values' frequencies. Dense channels have no bag and are predicted where masked.

    Raises:
      ValueError: the spec has no channel to predict.
    """

    def __init__(self, spec: Spec, tables: Mapping[str, Any]):
        super().__init__()
        self._spec = spec
        self.masked = MaskedChannelPrediction(spec, tables)
        self._channels = [c for c in spec.mcp_channels if not isinstance(c, DenseChannel)]
        self.bags = build_heads(self._channels, tables) if self._channels else {}
        self.widen = keras.layers.Dense(spec.model.ffn_dim, activation="relu", name="widen")
        self.narrow = keras.layers.Dense(spec.model.hidden_dim, name="narrow")

    def __call__(
        self, encoder: Any, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The sum of both, each a mean over its channels, plus the routers' losses."""
        encoded, loss, values = self.masked.encode_masked(encoder, batch, step, training)
        loss += router_loss(encoded.aux, self._spec.model)
        if not self._channels:
            return loss, values
        user_BD = encoder.pooling.whole(encoded.hidden, encoded.mask)
        bags = self.reconstruct(user_BD, batch, training)
        loss += tf.reduce_mean(tf.stack([bag.loss for bag in bags.values()]))
        return loss, values | channel_values("bag", bags)

    def reconstruct(self, user_BD: tf.Tensor, batch: Batch, training: bool) -> dict[str, Any]:
        """Each channel's bag from H, float32 [B, D]; users without a value of it don't count."""
        decoded_BD = self.narrow(self.widen(user_BD))
        return {c.feature: self._bag(c, decoded_BD, batch, training) for c in self._channels}

    def _bag(
        self, channel: Channel, decoded_BD: tf.Tensor, batch: Batch, training: bool
    ) -> ChannelLoss:
        values = batch[channel.feature]
        bag_BV = tf.reshape(values, [tf.shape(values)[0], -1])
        some = tf.where(tf.reduce_any(is_present(channel, values), axis=1))[:, 0]
        return self.bags[channel.feature](
            tf.gather(decoded_BD, some), tf.gather(bag_BV, some), batch, training=training
        )
