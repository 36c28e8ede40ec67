"""KEEP-C: extraction and plugging trained together, on the same data (KEEP §6.2)."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.embeddings.knowledge import ITEM, USER
from modules.embeddings.table import EmbeddingTable
from modules.features import DOMAIN, Batch
from modules.layers.plug_in import PlugIn
from modules.models.can import can_towers
from modules.models.encoder import Events
from modules.models.event_mean import EventMean
from modules.models.knowledge import decomposed
from modules.models.tables import Tables
from modules.models.two_tower import TwoTower


class KeepC(keras.layers.Layer):
    """CAN over H' = H + MLP(stop([K_u, K_i, K_u ⊙ K_i])) answers in the sub-domain; the model that
    K is of, a `TwoTower` with tables and an encoder of its own, answers in the super-domain.

    So the tasks' losses train both: each learns from its own domain's labels, and the plug-in from
    the sub-domain's. Not as in the paper: K is that of the decomposition (§5.2.1) alone, and new at
    every target instead of stored; the extraction model sees no label of the sub-domain; and
    `pairwise_weight` ranks by both models' losses.

    Raises:
      ValueError: a table is sharded or compressed, of which there can't be a second one.
    """

    reads_events = True

    def __init__(self, spec: Spec, tables: Tables, name: str = "heads"):
        super().__init__(name=name, autocast=False)
        self._base = can_towers(spec, tables)
        of_impressions = tuple(task for task in spec.tasks if task.per == "impression")
        extracted = spec.model_copy(update={"tasks": of_impressions})
        self._tables = {name: _another(tables[name], spec) for name in spec.tables}
        self._encoder = EventMean(extracted, self._tables, name="extraction_encoder")
        self._extraction = TwoTower(extracted, self._tables, name="extraction")
        self._plug_in = PlugIn(name="plug_in")

    def call(
        self,
        user: tf.Tensor,
        batch: Batch,
        tasks: tuple[Task, ...],
        training: bool = False,
        events: Events | None = None,
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}."""
        impressions = tuple(task for task in tasks if task.per == "impression")
        of_user = tuple(task for task in tasks if task.per == "user")
        logits = self._base(user, batch, of_user, training=training, events=events)
        if not impressions:
            return logits
        assert events is not None
        behaviour = self._at_targets(batch, events.visible, training)
        user_vector = self._extraction.user_vector(behaviour, training)
        item_vector = self._extraction.item_vector(batch, training)
        of_rest = self._extraction.of_vectors(user_vector, item_vector, impressions)
        knowledge = decomposed({USER: user_vector, ITEM: item_vector})
        plugged = self._plug_in(user, tf.stop_gradient(knowledge))
        of_domain = self._base(plugged, batch, impressions, training=training, events=events)
        is_sub = batch[DOMAIN][..., tf.newaxis]
        return logits | {
            name: tf.where(is_sub, of_domain[name], of_rest[name]) for name in of_domain
        }

    def _at_targets(self, batch: Batch, visible_BKL: tf.Tensor, training: bool) -> tf.Tensor:
        """The mean of the leading token and the visible events, float32 [B, K, D]."""
        hidden = self._encoder(batch, training=training).hidden
        seen = tf.pad(tf.cast(visible_BKL, tf.float32), [[0, 0], [0, 0], [1, 0]], constant_values=1)
        total = tf.matmul(seen, hidden)
        return total / tf.reduce_sum(seen, axis=-1, keepdims=True)


def _another(table: EmbeddingTable, spec: Spec) -> EmbeddingTable:
    """A table of the same size, with rows of its own."""
    if not isinstance(table, EmbeddingTable) or table.large:
        raise ValueError(
            f"keep_c: table {table.name!r} is sharded or compressed, so extraction can't have"
            " another one; raise 'model.full_softmax_rows', or give it fewer rows"
        )
    name = f"extraction_{table.name}"
    return EmbeddingTable(table.num_rows, table.dim, name=name, seed=spec.training.seed)
