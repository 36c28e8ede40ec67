"""KEEP in any of our models: extracted knowledge plugged into H, which all of them have."""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from data.spec import Knowledge
from modules.embeddings import knowledge
from modules.embeddings.knowledge import ITEM, NOTHING, USER, USER_CATEGORY, KnowledgeTable
from modules.features import Batch
from modules.layers.plug_in import PlugIn


class KnowledgePlugIn(keras.layers.Layer):
    """H' = H + MLP([K_u, K_i, K_u ⊙ K_i, K_uc])   (KEEP eq. 5 and 6)

    H at a target is h_m here: whatever the heads are, they read it. Kinds that the export has no
    vectors of are left out, and so is the product where users and items differ in width.

    Raises:
      ValueError: the export can't be read.
    """

    def __init__(self, settings: Knowledge, name: str = "plug_in"):
        super().__init__(name=name, autocast=False)
        self._tables = {
            kind: KnowledgeTable(keys, vectors, name=f"knowledge_{kind}")
            for kind, (keys, vectors) in knowledge.read(settings.path).items()
        }
        self._plug_in = PlugIn(name="network")

    def call(self, user: tf.Tensor, batch: Batch) -> tf.Tensor:
        """H float32 [B, K, D] -> [B, K, D], by the keys of `modules.features.pad`."""
        items = batch["knowledge_item"]
        users = tf.broadcast_to(batch["knowledge_user"][:, tf.newaxis], tf.shape(items))
        keys = {USER: users, ITEM: items}
        keys[USER_CATEGORY] = knowledge.pair_keys(users, batch["knowledge_category"])
        vectors = {kind: table(keys[kind]) for kind, table in self._tables.items()}
        return self._plug_in(user, decomposed(vectors))


def decomposed(vectors: dict[str, tf.Tensor]) -> tf.Tensor:
    """K̂(u, i, c) = [K_u, K_i, K_u ⊙ K_i, K_uc] (KEEP eq. 6), of those that are there.

    Args:
      vectors: kind -> float32 [..., D_kind].
    """
    parts = [vectors[kind] for kind in (USER, ITEM) if kind in vectors]
    if len(parts) == 2 and parts[0].shape[-1] == parts[1].shape[-1]:
        parts.append(parts[0] * parts[1])
    if USER_CATEGORY in vectors:
        parts.append(vectors[USER_CATEGORY])
    return tf.concat(parts, axis=-1)


def without_candidates(batch: Batch) -> Batch:
    """The batch as tasks per user see it: one target a row, of which only the user is known."""
    nothing = tf.fill([tf.shape(batch["knowledge_user"])[0], 1], tf.constant(NOTHING, tf.int64))
    return batch | {"knowledge_item": nothing, "knowledge_category": nothing}
