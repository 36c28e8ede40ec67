"""CAN (Bian et al. 2020): DIN plus a co-action unit for every id seen in events and candidate."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.channels import IdChannel
from data.spec import Spec
from modules.embeddings.table import rows_key
from modules.features import Batch
from modules.layers.channel_blocks import mean_of_values
from modules.layers.co_action import CoAction
from modules.models.din import Interest
from modules.models.encoder import Events
from modules.models.tables import Tables
from modules.models.towers import Towers


class InterestAndCoAction(keras.layers.Layer):
    """DIN's interest beside the co-action of each (event's, candidate's) pair of channels that
    share an id table.

    Raises:
      ValueError: no channels share one.
    """

    def __init__(self, spec: Spec, tables: Tables, name: str = "interaction"):
        super().__init__(name=name, autocast=False)
        self._pairs = tuple(
            (event, candidate)
            for candidate in spec.scope("candidate")
            for event in spec.scope("sequence")
            if isinstance(event, IdChannel)
            and isinstance(candidate, IdChannel)
            and event.table_name == candidate.table_name
        )
        if not self._pairs:
            raise ValueError(
                "can: a co-action needs an id channel of scope 'candidate' that shares its table"
                " with one of scope 'sequence'"
            )
        self._table = dict(tables).__getitem__  # owned by the model, as in `FeatureProjection`
        self._interest = Interest()
        self._units = [CoAction(name=f"co_action_{e.name}_{c.name}") for e, c in self._pairs]

    def call(self, candidate: tf.Tensor, events: Events, batch: Batch) -> tf.Tensor:
        """candidate float32 [B, K, D] -> [B, K, D + the units' widths]."""
        parts = [self._interest(candidate, events, batch)]
        for (event, offered), unit in zip(self._pairs, self._units, strict=True):
            rows = (self._rows(channel, batch) for channel in (offered, event))
            parts.append(unit(*rows, events.visible))
        return tf.concat(parts, axis=-1)

    def _rows(self, channel: IdChannel, batch: Batch) -> tf.Tensor:
        ids = batch[channel.feature]
        rows = self._table(channel.table_name)(ids, rows=batch.get(rows_key(channel.table_name)))
        rows = tf.cast(rows, tf.float32)
        return mean_of_values(rows, ids) if channel.multi_valued else rows


def can_towers(spec: Spec, tables: Tables) -> Towers:
    """Towers over H, the candidate, DIN's interest and the co-actions."""
    return Towers(spec, tables, interaction=InterestAndCoAction(spec, tables))
