"""Every model: an encoder, H at each target, and the tasks' heads over it."""

from __future__ import annotations

from typing import cast

import tensorflow as tf
import tf_keras as keras

from data.spec import Spec, Task
from modules.features import Batch, single_targets, suffix_features, visible_suffixes
from modules.layers.adapter import block_patches
from modules.models.architectures import ARCHITECTURES, HEADS
from modules.models.encoder import Encoded, Encoder, Events, LayeredEncoder
from modules.models.knowledge import KnowledgePlugIn, without_candidates
from modules.models.tables import embedding_tables
from modules.objectives.weighting.method import LogitsOf
from modules.objectives.weighting.methods import WEIGHTINGS


class UserModel(keras.Model):
    """What `model.architecture` names, put together.

    Attributes:
      spec: what it was made for.
      tables: name -> embedding table.
      encoder: `modules/models/encoder.py`; with the tables, what pre-training hands over.
      patches: adapters of the encoder's blocks, which stay what pre-training handed over; None
        without `training.finetune.adapters`.
      heads: `(user, batch, tasks, training) -> {task: logits [B, K, 1 or classes]}`; where they
        say `reads_events`, with the argument `events` too. What they learn by beside the tasks is
        their `auxiliary_loss` of all that they gave in training, more than the logits if need be.
      weighting: how the tasks' losses are weighed (`modules/objectives/weighting`).
      plug_in: what adds extracted knowledge to H before the heads; None without
        `knowledge.path`. (`user_embedding` is H as the encoder made it.)
      pretraining: the objective that is trained along with the tasks, as `Pretrainer` has it; None
        without `training.finetune.pretraining_weight`.
      splits_at_user: whether `score` can answer from H alone.
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
        joint = architecture.pretraining if spec.training.finetune.pretraining_weight else None
        self.pretraining = joint(spec, self.tables) if joint else None
        given = spec.knowledge
        self.plug_in = KnowledgePlugIn(given) if given is not None and given.path else None
        self.splits_at_user = not getattr(self.heads, "reads_events", False)
        self._pooling = self.encoder.pooling

    def make_variables(self, batch: Batch) -> None:
        """All that training changes, from a small batch."""
        self(batch)
        if self.pretraining is not None:
            self.pretraining(self.encoder, batch, tf.constant(0, tf.int64), training=False)

    def user_embedding(self, batch: Batch) -> tf.Tensor:
        """H over everything the window holds: float32 [B, D] (SuperMoE eq. 8)."""
        return self.pooled(self.encode_all(batch))

    def pooled(self, encoded: Encoded) -> tf.Tensor:
        """H of all that was encoded: float32 [B, D]."""
        return self._pooling.whole(encoded.hidden, encoded.mask)

    def encode_all(self, batch: Batch) -> Encoded:
        """h_o of all that a target at the end would see."""
        if self.spec.sequence.targets == "expanded":
            instance = tf.range(tf.shape(batch["sequence_mask"], tf.int64)[0])
            end = tf.reduce_sum(tf.cast(batch["sequence_mask"], tf.int64), axis=1)
            batch = suffix_features(batch, self.spec, instance, end)
        return self.encode(batch)

    def call(self, batch: Batch, training: bool = False) -> tuple[dict[str, tf.Tensor], tuple]:
        """Logits of every task at every target.

        Returns:
          {task: float32 [B, K] (multiclass [B, K, C])} and the router statistics.
        """
        user, logits_of, aux = self.at_targets(batch, self.spec.tasks, training)
        return logits_of(user), aux

    def serve(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Logits per impression task [B, K], per user task [B].

        A user is encoded once, however many candidates; only targets that see different events
        (`target_position`) need more, and heads that read events.
        """
        if not self.splits_at_user:
            at_targets, logits_of, _ = self.at_targets(batch, self._tasks("impression"), False)
            return logits_of(at_targets) | self._per_user(self.user_embedding(batch), batch)
        if self.spec.sequence.targets == "expanded":
            at_end = self.user_embedding(batch)

            def at_each_target() -> tf.Tensor:
                return self._target_embeddings(batch, training=False)[0]

        else:
            encoded = self.encode(batch)
            at_end = self.pooled(encoded)

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

        Raises:
          ValueError: the heads read events.
        """
        if not self.splits_at_user:
            raise ValueError(f"{self.spec.model.architecture}: candidates need the user's events")
        return self._serve(_for_each_target(user, batch), user, batch)

    def _serve(
        self, at_targets: tf.Tensor, at_end: tf.Tensor, batch: Batch
    ) -> dict[str, tf.Tensor]:
        scores = self._logits(at_targets, batch, self._tasks("impression"), training=False)
        return scores | self._per_user(at_end, batch)

    def _per_user(self, at_end: tf.Tensor, batch: Batch) -> dict[str, tf.Tensor]:
        if self.plug_in is not None:
            batch = without_candidates(batch)
        ends = self._logits(at_end[:, tf.newaxis], batch, self._tasks("user"), training=False)
        return {name: logits[:, 0] for name, logits in ends.items()}

    def _tasks(self, per: str) -> tuple[Task, ...]:
        return tuple(task for task in self.spec.tasks if task.per == per)

    def at_targets(
        self, batch: Batch, tasks: tuple[Task, ...], training: bool
    ) -> tuple[tf.Tensor, LogitsOf, tuple]:
        """What the tasks share at every target, and what they make of it.

        Returns:
          H, float32 [B, K, D] (heads that read events, under `expanded`: [targets, 1, D]); a
          function of H -> {task: logits [B, K] (multiclass [B, K, C])}; the router statistics.
        """
        if self.spec.sequence.targets == "causal":
            encoded = self.encode(batch, training=training)
            user, events = self._prefix_embeddings(encoded, batch), None
            if not self.splits_at_user:
                place = tf.range(tf.shape(encoded.mask, tf.int64)[1] - 1)
                visible = place < batch["target_position"][..., tf.newaxis]
                events = Events(encoded.hidden[:, 1:], visible & encoded.mask[:, tf.newaxis, 1:])
            return (
                user,
                lambda user: self._logits(user, batch, tasks, training, events),
                encoded.aux,
            )
        if self.splits_at_user:
            user, aux = self._target_embeddings(batch, training)
            return user, lambda user: self._logits(user, batch, tasks, training), aux
        rows, places = single_targets(batch, self.spec)
        encoded = self.encode(rows, training=training)
        seen = Events(encoded.hidden[:, 1:], encoded.mask[:, tf.newaxis, 1:])

        def logits_of(user: tf.Tensor) -> dict[str, tf.Tensor]:
            logits = self._logits(user, rows, tasks, training, seen)
            return {
                name: at_places(places, value[:, 0], batch["target_mask"])
                for name, value in logits.items()
            }

        return self.pooled(encoded)[:, tf.newaxis], logits_of, encoded.aux

    def encode(self, batch: Batch, training: bool = False) -> Encoded:
        """h_o of the events as they stand, with the model's own adapters."""
        if self.patches is None:
            return self.encoder(batch, training=training)
        return _layered(self.encoder)(batch, training=training, patches=self.patches)

    def _target_embeddings(self, batch: Batch, training: bool) -> tuple[tf.Tensor, tuple]:
        """H at every target [B, K, D], over the events the target may see."""
        if self.spec.sequence.targets == "causal":
            encoded = self.encode(batch, training=training)
            return self._prefix_embeddings(encoded, batch), encoded.aux
        rows, places = visible_suffixes(batch, self.spec)
        encoded = self.encode(rows, training=training)
        return at_places(places, self.pooled(encoded), batch["target_mask"]), encoded.aux

    def _prefix_embeddings(self, encoded: Encoded, batch: Batch) -> tf.Tensor:
        """Causal H: index p of the prefixes has seen the leading token and p events."""
        prefixes = self._pooling.prefixes(encoded.hidden, encoded.mask)
        return tf.gather(prefixes, batch["target_position"], batch_dims=1)

    def _logits(
        self,
        user: tf.Tensor,
        batch: Batch,
        tasks: tuple[Task, ...],
        training: bool,
        events: Events | None = None,
    ) -> dict[str, tf.Tensor]:
        if not tasks:
            return {}
        if self.plug_in is not None:
            user = self.plug_in(user, batch)
        reads = {} if events is None else {"events": events}
        logits = self.heads(user, batch, tasks, training=training, **reads)
        return logits | {t.name: logits[t.name][..., 0] for t in tasks if not t.classes}


def _layered(encoder: Encoder) -> LayeredEncoder:
    """The spec takes adapters for such encoders only."""
    return cast(LayeredEncoder, encoder)


def at_places(places: tf.Tensor, values: tf.Tensor, target_mask: tf.Tensor) -> tf.Tensor:
    """Values [N, …] of the real targets -> [B, K, …], zeros elsewhere."""
    shape = tf.concat([tf.shape(target_mask, tf.int64), tf.shape(values, tf.int64)[1:]], 0)
    return tf.ensure_shape(
        tf.scatter_nd(places, values, shape), target_mask.shape + values.shape[1:]
    )


def _for_each_target(user: tf.Tensor, batch: Batch) -> tf.Tensor:
    """H [B, D] -> [B, K, D]."""
    num_targets = tf.shape(batch["target_mask"])[1]
    return tf.repeat(user[:, tf.newaxis], num_targets, axis=1)
