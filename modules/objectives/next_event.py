"""Pre-training from left to right: each event from the events before it (PeterRec eq. 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.objectives.masked_channels import build_heads, channel_values, is_present, mcp_loss
from modules.objectives.router import router_loss, router_values


class NextEventPrediction(tf.Module):
    """p(x_i | x_1, …, x_{i-1}) of every MCP channel, by the heads that predict masked values.

    The encoder must be causal (`sequence.targets: causal`): nothing is masked, so one that saw an
    event would have nothing to predict.

    Raises:
      ValueError: the spec has no channel to predict, or isn't causal.
    """

    def __init__(self, spec: Spec, tables: Mapping[str, Any]):
        super().__init__()
        if spec.sequence.targets != "causal":
            raise ValueError("pre-train: `next_event` needs `sequence.targets: causal`")
        self._spec = spec
        self.heads = build_heads(spec.mcp_channels, tables)

    def __call__(
        self, encoder: Callable, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """-log of eq. 1, a mean over events and channels, plus the routers' losses."""
        del step
        encoded = encoder(batch, training=training)
        positions = {
            c.feature: batch["sequence_mask"] & is_present(c, batch[c.feature])
            for c in self._spec.mcp_channels
        }
        # Index i of h_o has seen the leading token and i events: it predicts the one after.
        before = encoded.hidden[:, :-1]
        total, channels = mcp_loss(self.heads, before, batch, positions, training=training)
        values = channel_values("next", channels) | router_values(encoded.aux)
        return total + router_loss(encoded.aux, self._spec.model), values
