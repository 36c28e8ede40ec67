"""What pre-training trains: the encoder, its tables and the objective's own heads."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec
from modules.features import Batch
from modules.models.architectures import ARCHITECTURES
from modules.models.tables import embedding_tables


class Pretrainer(tf.Module):
    """The architecture's encoder under its pre-training objective.

    Attributes:
      tables, encoder: as `UserModel` has them; they are what is handed over.
      objective: `(encoder, batch, step, training) -> (loss, values to record)`.

    Raises:
      ValueError: the architecture isn't pre-trained, or the spec lacks what its objective needs.
    """

    def __init__(self, spec: Spec, rows: dict[str, int]):
        super().__init__()
        architecture = ARCHITECTURES[spec.model.architecture]
        if architecture.pretraining is None:
            raise ValueError(
                f"pre-train: {spec.model.architecture} has no pre-training; set"
                " `training.pretrain.epochs: 0`"
            )
        self.spec = spec
        self.tables = embedding_tables(spec, rows, spec.training.pretrain)
        self.encoder = architecture.encoder(spec, self.tables)
        self.objective = architecture.pretraining(spec, self.tables)

    def loss(
        self, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The objective's loss of a batch, and what to record."""
        return self.objective(self.encoder, batch, step, training=training)
