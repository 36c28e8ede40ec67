"""KEEP-C: extraction and plugging trained together, on the same data (KEEP §6.2)."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.embeddings.knowledge import ITEM, USER
from modules.embeddings.table import EmbeddingTable
from modules.features import DOMAIN, Batch, trained_targets
from modules.layers.plug_in import PlugIn
from modules.models.can import can_towers
from modules.models.encoder import Events
from modules.models.event_mean import EventMean
from modules.models.knowledge import decomposed
from modules.models.tables import Tables
from modules.models.two_tower import TwoTower
from modules.objectives.task_loss import task_losses, weighted_total


class KeepC(keras.layers.Layer):
    """CAN over H' = H + MLP(stop([K_u, K_i, K_u ⊙ K_i])) answers in the sub-domain; the model that
    K is of, a `TwoTower` with tables and an encoder of its own, answers outside it.

    CAN and the plug-in learn from the sub-domain's labels, the extraction model from those of the
    whole super-domain, the sub-domain's among them. Not as in the paper: K is that of the
    decomposition (§5.2.1) alone, and new at every target instead of stored; and `pairwise_weight`
    ranks by both models' losses.

    Raises:
      ValueError: a table is sharded or compressed, of which there can't be a second one.
    """

    reads_events = True

    def __init__(self, spec: Spec, tables: Tables, name: str = "heads"):
        super().__init__(name=name, autocast=False)
        self._base = can_towers(spec, tables)
        of_impressions = tuple(task for task in spec.tasks if task.per == "impression")
        self._extracted = spec.model_copy(update={"tasks": of_impressions})
        self._tables = {name: _another(tables[name], spec) for name in spec.tables}
        self._encoder = EventMean(self._extracted, self._tables, name="extraction_encoder")
        self._extraction = TwoTower(self._extracted, self._tables, name="extraction")
        self._plug_in = PlugIn(name="plug_in")

    def call(
        self,
        user: tf.Tensor,
        batch: Batch,
        tasks: tuple[Task, ...],
        training: bool = False,
        events: Events | None = None,
    ) -> dict[str, tf.Tensor]:
        """H at each target, float32 [B, K, D] -> {task: logits [B, K, 1 or classes]}; in training
        also the extraction model's at every target, [B, K] ([B, K, classes]), as '$task'."""
        impressions = tuple(task for task in tasks if task.per == "impression")
        of_user = tuple(task for task in tasks if task.per == "user")
        logits = self._base(user, batch, of_user, training=training, events=events)
        if not impressions:
            return logits
        assert events is not None
        behaviour = self._at_targets(batch, events.visible, training)
        user_vector = self._extraction.user_vector(behaviour, training)
        item_vector = self._extraction.item_vector(batch, training)
        of_extraction = self._extraction.of_vectors(user_vector, item_vector, impressions)
        knowledge = decomposed({USER: user_vector, ITEM: item_vector})
        plugged = self._plug_in(user, tf.stop_gradient(knowledge))
        of_domain = self._base(plugged, batch, impressions, training=training, events=events)
        is_sub = batch[DOMAIN][..., tf.newaxis]
        for task in impressions:
            name, given = task.name, of_extraction[task.name]
            logits[name] = tf.where(is_sub, of_domain[name], given)
            if training:
                logits[f"${name}"] = given if task.classes else given[..., 0]
        return logits

    def auxiliary_loss(
        self, outputs: dict[str, tf.Tensor], batch: Batch
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The extraction model's losses where CAN answers, at the sub-domain's targets; these
        weigh as much as others do in the tasks' losses, which are means over all targets."""
        logits = {task.name: outputs[f"${task.name}"] for task in self._extracted.tasks}
        every = trained_targets(batch)
        losses, inside = task_losses(self._extracted, logits, batch, every & batch[DOMAIN])
        _, counts = task_losses(self._extracted, logits, batch, every)
        weights = {
            task.name: task.weight * tf.math.divide_no_nan(inside[task.name], counts[task.name])
            for task in self._extracted.tasks
        }
        values = {f"extraction/{name}/loss": loss for name, loss in losses.items()}
        return weighted_total(losses, weights), values

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
