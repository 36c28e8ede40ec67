"""Pre-training by masked channel prediction: masks, encodes, predicts (SuperMoE §3.1, eq. 1-2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.models.encoder import Encoded
from modules.objectives.masked_channels import build_heads, channel_values, mask_channels, mcp_loss
from modules.objectives.router import router_loss, router_values
from modules.replicas import replica_id


class MaskedChannelPrediction(tf.Module):
    """A head for every masked channel, and what they say of an encoder.

    Under `sequence.targets: causal` the encoder shows them the rest of the event and earlier ones,
    where eq. 1 has both sides; `expanded` is as there.

    Raises:
      ValueError: the spec has no channel to predict.
    """

    def __init__(self, spec: Spec, tables: Mapping[str, Any]):
        super().__init__()
        self._spec = spec
        self.heads = build_heads(spec.mcp_channels, tables)

    def __call__(
        self, encoder: Callable, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Eq. 2 averaged over the masked channels, plus the routers' losses."""
        encoded, loss, values = self.encode_masked(encoder, batch, step, training)
        return loss + router_loss(encoded.aux, self._spec.model), values

    def encode_masked(
        self, encoder: Callable, batch: Batch, step: tf.Tensor, training: bool
    ) -> tuple[Encoded, tf.Tensor, dict[str, tf.Tensor]]:
        """What the encoder makes of the masked batch, eq. 2's loss of that, and what to record."""
        spec = self._spec
        seed = tf.stack([tf.constant(spec.training.seed, tf.int64), step])
        seed = tf.random.experimental.stateless_fold_in(seed, replica_id())
        masked, positions = mask_channels(
            batch,
            spec.mcp_channels,
            batch["sequence_mask"],
            spec.training.pretrain.mask_rate,
            seed,
            spec.training.pretrain.whole_event_share,
        )
        encoded = encoder(masked, training=training)
        # The leading token is no event.
        total, channels = mcp_loss(
            self.heads, encoded.hidden[:, 1:], batch, positions, training=training
        )
        return encoded, total, channel_values("mcp", channels) | router_values(encoded.aux)
