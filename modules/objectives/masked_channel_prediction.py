"""Pre-training by masked channel prediction: masks, encodes, predicts (SuperMoE §3.1, eq. 1-2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.objectives.masked_channels import build_heads, mask_channels, mcp_loss
from modules.objectives.router import router_loss, router_values
from modules.replicas import replica_id


class MaskedChannelPrediction(tf.Module):
    """A head for every masked channel, and what they say of an encoder.

    Raises:
      ValueError: the spec has no channel to predict.
    """

    def __init__(self, spec: Spec, tables: Mapping[str, Any]):
        super().__init__()
        if not spec.mcp_channels:
            raise ValueError(
                "pre-train: no channel has `mask_prediction: true`; mark the important ones, or"
                " skip the phase with `training.pretrain.epochs: 0`"
            )
        self._spec = spec
        self.heads = build_heads(spec.mcp_channels, tables)

    def __call__(
        self, encoder: Callable, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Eq. 2 averaged over the masked channels, plus the routers' losses."""
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
        values: dict[str, tf.Tensor] = {}
        for name, part in channels.items():
            values |= {f"mcp/{name}/loss": part.loss, f"mcp/{name}/metric": part.metric}
        return total + router_loss(encoded.aux, spec.model), values | router_values(encoded.aux)
