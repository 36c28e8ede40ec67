"""SuperMoE: MoE-transformer encoder, user representation H, one tower a task (paper §3)."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from data.spec import Phase, Spec, Task, table_setting
from modules.embeddings.compressed import CompressedTable, compressed_table
from modules.embeddings.dynamic import DynamicTable
from modules.embeddings.table import EmbeddingTable
from modules.features import Batch, suffix_features, visible_suffixes
from modules.layers.block import MoETransformerBlock
from modules.layers.feature_projection import FeatureProjection
from modules.layers.norm import layer_norm
from modules.layers.pooling import max_pool, running_max
from modules.layers.tower import Tower
from modules.preprocessing import private_rows

_DEFAULT_TABLE_DIM = 16


class Encoded(NamedTuple):
    """hidden: h_o [B, 1 + L, D], index 0 is the leading token; mask: bool [B, 1 + L];
    aux: router statistics, one per MoE-FFN."""

    hidden: tf.Tensor
    mask: tf.Tensor
    aux: tuple


def embedding_tables(
    spec: Spec, rows: dict[str, int], phase: Phase
) -> dict[str, EmbeddingTable | CompressedTable]:
    """One table a name; channels that share a name share the table.

    Args:
      rows: of every table, as `modules.preprocessing.table_rows` counts them.
      phase: what trains them.
    """
    return {name: _table(spec, name, rows[name], phase) for name in spec.tables}


def _table(spec: Spec, name: str, rows: int, phase: Phase) -> EmbeddingTable | CompressedTable:
    channels, dim, seed = spec.tables[name], table_dim(spec, name), spec.training.seed
    compression = table_setting(channels, "compression", None)
    if compression is not None:
        private = private_rows(spec, name, rows)
        return compressed_table(rows, dim, name, private, compression, seed)
    sizes = table_setting(channels, "dynamic", None)
    dynamic = sizes and DynamicTable(dim, name, sizes, seed, optimizer=phase.table_optimizer)
    large = spec.is_large(name, rows)
    return EmbeddingTable(rows, dim, name=name, large=large, seed=seed, dynamic_rows=dynamic)


def table_dim(spec: Spec, table: str) -> int:
    """Width of a table's rows."""
    return table_setting(spec.tables[table], "dim", _DEFAULT_TABLE_DIM)


class Encoder(keras.layers.Layer):
    """Eq. 7: blocks of MoE-MSA and MoE-FFNs over the projected channels of a sequence.

    A leading token made of the context every task may see stands before the oldest event,
    so a user without events has a representation too.
    """

    def __init__(
        self,
        spec: Spec,
        tables: dict[str, EmbeddingTable | CompressedTable],
        name: str = "encoder",
    ):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        sizes = spec.model
        self._causal = spec.sequence.targets == "causal"
        positions = spec.sequence.window if self._causal else spec.sequence.max_length
        self._project = FeatureProjection(
            spec.scope("sequence"), tables, sizes.hidden_dim, sizes.dropout
        )
        self._project_context = (
            FeatureProjection(spec.encoder_context, tables, sizes.hidden_dim, sizes.dropout)
            if spec.encoder_context
            else None
        )
        self._lead = self.add_weight(
            name="lead",
            shape=[sizes.hidden_dim],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self._position = self.add_weight(
            name="position",
            shape=[positions, sizes.hidden_dim],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self._blocks = [
            MoETransformerBlock(
                num_heads=sizes.num_heads,
                hidden_dim=sizes.hidden_dim,
                ffn_dim=sizes.ffn_dim,
                num_experts=sizes.num_experts,
                num_attention_experts=sizes.num_attention_experts,
                capacity_factor=sizes.capacity_factor,
                dropout=sizes.dropout,
                name=f"block_{i}",
            )
            for i in range(sizes.num_blocks)
        ]
        self._norm = layer_norm(name="norm")

    def call(self, batch: Batch, training: bool = False) -> Encoded:
        """Sequence and context features of `modules/features.py` -> h_o."""
        mask = batch["sequence_mask"]
        x = self._project(batch, training=training)
        x += self._positions(mask, x.dtype)
        lead = tf.broadcast_to(tf.cast(self._lead, x.dtype), [tf.shape(x)[0], 1, tf.shape(x)[2]])
        if self._project_context is not None:
            lead += self._project_context(batch, training=training)[:, tf.newaxis]
        x = tf.concat([lead, x], axis=1)
        mask = tf.pad(mask, [[0, 0], [1, 0]], constant_values=True)
        aux = []
        for block in self._blocks:
            x, block_aux = block(x, mask, causal=self._causal, training=training)
            aux.extend(block_aux)
        return Encoded(tf.cast(self._norm(x), tf.float32), mask, tuple(aux))

    def _positions(self, mask: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Causal: the event's place in the window. Expanded: its distance from the newest."""
        num_positions = self._position.shape[0]
        place = tf.range(tf.shape(mask)[1])[tf.newaxis, :]
        if not self._causal:
            place = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1, keepdims=True) - 1 - place
        place = tf.clip_by_value(place, 0, num_positions - 1)
        return tf.gather(tf.cast(self._position, dtype), place)


class SuperMoE(keras.Model):
    """Encoder, H (eq. 8) and a tower for every task."""

    def __init__(self, spec: Spec, rows: dict[str, int], name: str = "supermoe"):
        super().__init__(name=name, autocast=False)  # Dense values are cast once cleaned.
        self.spec = spec
        self.tables = embedding_tables(spec, rows, spec.training.finetune)
        self.encoder = Encoder(spec, self.tables)
        sizes = spec.model
        if spec.scope("candidate"):
            self._project_candidate = FeatureProjection(
                spec.scope("candidate"), self.tables, sizes.hidden_dim, sizes.dropout
            )
            self._query = keras.layers.Dense(sizes.hidden_dim, name="query")
        self._project_context = {
            task.name: FeatureProjection(
                spec.context_for(task), self.tables, sizes.hidden_dim, sizes.dropout
            )
            for task in spec.tasks
            if spec.context_for(task)
        }
        self._towers = {
            task.name: Tower(
                sizes.tower_dims,
                len(task.classes or (None,)),
                sizes.dropout,
                name=f"tower_{task.name}",
            )
            for task in spec.tasks
        }

    def user_embedding(self, batch: Batch) -> tf.Tensor:
        """H = MaxPool(h_o) over everything the window holds: float32 [B, D] (eq. 8)."""
        if self.spec.sequence.targets == "expanded":
            instance = tf.range(tf.shape(batch["sequence_mask"], tf.int64)[0])
            end = tf.reduce_sum(tf.cast(batch["sequence_mask"], tf.int64), axis=1)
            batch = suffix_features(batch, self.spec, instance, end)
        encoded = self.encoder(batch, training=False)
        return max_pool(encoded.hidden, encoded.mask)

    def call(self, batch: Batch, training: bool = False) -> tuple[dict[str, tf.Tensor], tuple]:
        """Logits of every task at every target.

        Returns:
          {task: float32 [B, K] (multiclass [B, K, C])} and the router statistics.
        """
        user, aux = self._target_embeddings(batch, training)
        return self._score(user, batch, self.spec.tasks, training), aux

    def serve(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Logits per impression task [B, K], per user task [B].

        A user is encoded once, however many candidates; only targets that see different events
        (`target_position`) need more.
        """
        if self.spec.sequence.targets == "expanded":
            at_end = self.user_embedding(batch)

            def at_each_target() -> tf.Tensor:
                return self._target_embeddings(batch, training=False)[0]

        else:
            encoded = self.encoder(batch, training=False)
            at_end = max_pool(encoded.hidden, encoded.mask)

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
        scores = self._score(at_targets, batch, impression, training=False)
        ends = self._score(at_end[:, tf.newaxis], batch, per_user, training=False)
        return scores | {name: logits[:, 0] for name, logits in ends.items()}

    def _target_embeddings(self, batch: Batch, training: bool) -> tuple[tf.Tensor, tuple]:
        """H at every target [B, K, D], over the events the target may see."""
        if self.spec.sequence.targets == "causal":
            encoded = self.encoder(batch, training=training)
            return self._prefix_embeddings(encoded, batch), encoded.aux
        rows, places = visible_suffixes(batch, self.spec)
        encoded = self.encoder(rows, training=training)
        pooled = max_pool(encoded.hidden, encoded.mask)
        shape = tf.concat(
            [tf.shape(batch["target_mask"], tf.int64), [self.spec.model.hidden_dim]], 0
        )
        return tf.scatter_nd(places, pooled, shape), encoded.aux

    @staticmethod
    def _prefix_embeddings(encoded: Encoded, batch: Batch) -> tf.Tensor:
        """Causal H: index p of the running max has seen the leading token and p events."""
        return tf.gather(
            running_max(encoded.hidden, encoded.mask), batch["target_position"], batch_dims=1
        )

    def _score(
        self, user: tf.Tensor, batch: Batch, tasks: tuple[Task, ...], training: bool
    ) -> dict[str, tf.Tensor]:
        """Towers over [H, candidate, H·candidate, context]; user: [B, K, D]."""
        impression = [user]
        if any(t.per == "impression" for t in tasks):
            candidate = tf.cast(self._project_candidate(batch, training=training), tf.float32)
            query = tf.cast(self._query(user), tf.float32)
            impression += [candidate, query * candidate]
        logits = {}
        for task in tasks:
            inputs = list(impression) if task.per == "impression" else [user]
            if task.name in self._project_context:
                context = self._project_context[task.name](batch, training=training)
                context = tf.cast(context, tf.float32)[:, tf.newaxis]
                inputs.append(tf.broadcast_to(context, tf.shape(user)))
            output = self._towers[task.name](tf.concat(inputs, axis=-1), training=training)
            logits[task.name] = output if task.classes else output[..., 0]
        return logits


def _for_each_target(user: tf.Tensor, batch: Batch) -> tf.Tensor:
    """H [B, D] -> [B, K, D]."""
    num_targets = tf.shape(batch["target_mask"])[1]
    return tf.repeat(user[:, tf.newaxis], num_targets, axis=1)
