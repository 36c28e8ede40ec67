"""What pre-training trains: the encoder, its tables and a head for every masked channel."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.models.supermoe import Encoder, embedding_tables
from modules.objectives.masked_channels import build_heads, mask_channels, mcp_loss
from modules.objectives.router import expert_loads, router_loss
from modules.replicas import replica_id


class Pretrainer(tf.Module):
    """Masked channel prediction over the encoder (SuperMoE §3.1).

    Raises:
      ValueError: the spec has no channel to predict.
    """

    def __init__(self, spec: Spec, rows: dict[str, int]):
        super().__init__()
        if not spec.mcp_channels:
            raise ValueError(
                "pre-train: no channel has `mask_prediction: true`; mark the important ones, or"
                " skip the phase with `training.pretrain.epochs: 0`"
            )
        self.spec = spec
        self.tables = embedding_tables(spec, rows, spec.training.pretrain)
        self.encoder = Encoder(spec, self.tables)
        self.heads = build_heads(spec.mcp_channels, self.tables)

    def loss(
        self, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Eq. 2 averaged over the masked channels, plus the routers' losses."""
        seed = tf.stack([tf.constant(self.spec.training.seed, tf.int64), step])
        seed = tf.random.experimental.stateless_fold_in(seed, replica_id())
        masked, positions = mask_channels(
            batch,
            self.spec.mcp_channels,
            batch["sequence_mask"],
            self.spec.training.pretrain.mask_rate,
            seed,
            self.spec.training.pretrain.whole_event_share,
        )
        encoded = self.encoder(masked, training=training)
        # The leading token is no event.
        total, channels = mcp_loss(
            self.heads, encoded.hidden[:, 1:], batch, positions, training=training
        )
        values: dict[str, tf.Tensor] = {}
        for name, part in channels.items():
            values |= {f"mcp/{name}/loss": part.loss, f"mcp/{name}/metric": part.metric}
        values["expert_load"] = expert_loads(encoded.aux)
        return total + router_loss(encoded.aux, self.spec.model), values
