"""Every model: an encoder, H at each target, and the tasks' heads over it."""

from __future__ import annotations

from typing import cast

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import Batch, suffix_features, visible_suffixes
from modules.layers.adapter import block_patches
from modules.models.architectures import ARCHITECTURES, HEADS
from modules.models.encoder import Encoded, Encoder, LayeredEncoder
from modules.models.tables import embedding_tables
from modules.objectives.weighting.methods import WEIGHTINGS


class UserModel(keras.Model):
    """What `model.architecture` names, put together.

    Attributes:
      spec: what it was made for.
      tables: name -> embedding table.
      encoder: `modules/models/encoder.py`; with the tables, what pre-training hands over.
      patches: adapters of the encoder's blocks, which stay what pre-training handed over; None
        without `training.finetune.adapters`.
      heads: `(user, batch, tasks, training) -> {task: logits [B, K, 1 or classes]}`.
      weighting: how the tasks' losses are weighed (`modules/objectives/weighting`).
    """

    def __init__(self, spec: Spec, rows: dict[str, int], name: str = "user_model"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        self.spec = spec
        self.tables = embedding_tables(spec, rows, spec.training.finetune)
        architecture = ARCHITECTURES[spec.model.architecture]
        self.encoder = architecture.encoder(spec, self.tables)
        adapters = spec.training.finetune.adapters
        self.patches = block_patches(_layered(self.encoder).blocks, adapters) if adapters else None
        heads = HEADS[spec.model.heads] if spec.model.heads else architecture.heads
        self.heads = heads(spec, self.tables)
        self.weighting = WEIGHTINGS[spec.training.finetune.weighting](spec)
        self._pooling = self.encoder.pooling

    def user_embedding(self, batch: Batch) -> tf.Tensor:
        """H over everything the window holds: float32 [B, D] (SuperMoE eq. 8)."""
        if self.spec.sequence.targets == "expanded":
            instance = tf.range(tf.shape(batch["sequence_mask"], tf.int64)[0])
            end = tf.reduce_sum(tf.cast(batch["sequence_mask"], tf.int64), axis=1)
            batch = suffix_features(batch, self.spec, instance, end)
        encoded = self._encode(batch, training=False)
        return self._pooling.whole(encoded.hidden, encoded.mask)

    def call(self, batch: Batch, training: bool = False) -> tuple[dict[str, tf.Tensor], tuple]:
        """Logits of every task at every target.

        Returns:
          {task: float32 [B, K] (multiclass [B, K, C])} and the router statistics.
        """
        user, aux = self.target_embeddings(batch, training)
        return self.target_logits(user, batch, training), aux

    def serve(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Logits per impression task [B, K], per user task [B].

        A user is encoded once, however many candidates; only targets that see different events
        (`target_position`) need more.
        """
        if self.spec.sequence.targets == "expanded":
            at_end = self.user_embedding(batch)

            def at_each_target() -> tf.Tensor:
                return self.target_embeddings(batch, training=False)[0]

        else:
            encoded = self._encode(batch, training=False)
            at_end = self._pooling.whole(encoded.hidden, encoded.mask)

            def at_each_target() -> tf.Tensor:
                return self._prefix_embeddings(encoded, batch)

        num_events = tf.reduce_sum(tf.cast(batch["sequence_mask"], tf.int64), 1, keepdims=True)
        see_all = tf.equal(batch["target_position"], num_events) | ~batch["target_mask"]
        at_targets = tf.cond(
            tf.reduce_all(see_all), lambda: _for_each_target(at_end, batch), at_each_target
        )
        return self._serve(at_targets, at_end, batch)

    def score(self, user: tf.Tensor, batch: Batch) -> dict[str, tf.Tensor]:
        """`serve` from an H computed before: candidates and context only, no encoder.

        Args:
          user: H, float32 [B, D], as `user_embedding` gives it; every target sees all events.
        """
        return self._serve(_for_each_target(user, batch), user, batch)

    def _serve(
        self, at_targets: tf.Tensor, at_end: tf.Tensor, batch: Batch
    ) -> dict[str, tf.Tensor]:
        impression = tuple(t for t in self.spec.tasks if t.per == "impression")
        per_user = tuple(t for t in self.spec.tasks if t.per == "user")
        scores = self._logits(at_targets, batch, impression, training=False)
        ends = self._logits(at_end[:, tf.newaxis], batch, per_user, training=False)
        return scores | {name: logits[:, 0] for name, logits in ends.items()}

    def _encode(self, batch: Batch, training: bool) -> Encoded:
        if self.patches is None:
            return self.encoder(batch, training=training)
        return _layered(self.encoder)(batch, training=training, patches=self.patches)

    def target_embeddings(self, batch: Batch, training: bool) -> tuple[tf.Tensor, tuple]:
        """H at every target, float32 [B, K, D], over the events the target may see; and the router
        statistics."""
        if self.spec.sequence.targets == "causal":
            encoded = self._encode(batch, training=training)
            return self._prefix_embeddings(encoded, batch), encoded.aux
        rows, places = visible_suffixes(batch, self.spec)
        encoded = self._encode(rows, training=training)
        pooled = self._pooling.whole(encoded.hidden, encoded.mask)
        shape = tf.concat(
            [tf.shape(batch["target_mask"], tf.int64), [self.spec.model.hidden_dim]], 0
        )
        return tf.scatter_nd(places, pooled, shape), encoded.aux

    def target_logits(self, user: tf.Tensor, batch: Batch, training: bool) -> dict[str, tf.Tensor]:
        """Logits of every task from H at every target, as `call` returns them."""
        return self._logits(user, batch, self.spec.tasks, training)

    def _prefix_embeddings(self, encoded: Encoded, batch: Batch) -> tf.Tensor:
        """Causal H: index p of the prefixes has seen the leading token and p events."""
        prefixes = self._pooling.prefixes(encoded.hidden, encoded.mask)
        return tf.gather(prefixes, batch["target_position"], batch_dims=1)

    def _logits(
        self, user: tf.Tensor, batch: Batch, tasks: tuple[Task, ...], training: bool
    ) -> dict[str, tf.Tensor]:
        if not tasks:
            return {}
        logits = self.heads(user, batch, tasks, training=training)
        return {t.name: logits[t.name] if t.classes else logits[t.name][..., 0] for t in tasks}


def _layered(encoder: Encoder) -> LayeredEncoder:
    """The spec takes adapters for such encoders only."""
    return cast(LayeredEncoder, encoder)


def _for_each_target(user: tf.Tensor, batch: Batch) -> tf.Tensor:
    """H [B, D] -> [B, K, D]."""
    num_targets = tf.shape(batch["target_mask"])[1]
    return tf.repeat(user[:, tf.newaxis], num_targets, axis=1)
