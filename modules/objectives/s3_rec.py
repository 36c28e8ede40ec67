"""S3-Rec's pre-training: what items, attributes and segments say of each other.

Zhou et al., 2020: S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual
Information Maximization, §4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.channels import Channel, DenseChannel
from data.spec import Spec
from modules.embeddings.table import rows_key
from modules.features import Batch
from modules.objectives.masked_channels import (
    ChannelLoss,
    build_heads,
    channel_values,
    is_present,
    mcp_loss,
    mean_over_masked,
    replaced,
)
from modules.objectives.router import router_loss, router_values
from modules.replicas import replica_id

_WEIGHTS = {"aap": 0.2, "mip": 1.0, "map": 1.0, "sp": 0.5}
"""The authors' code's."""


class S3Rec(tf.Module):
    """Four objectives, each E[f(x, y) - log Σ_ỹ exp f(x, ỹ)] of a bilinear f (their eq. 3):

    - AAP, associated attribute prediction (eq. 10): an item's attributes from its row alone.
    - MIP, masked item prediction (eq. 12): a hidden event's item from the events around it.
    - MAP, masked attribute prediction (eq. 14): a hidden event's attributes from the same.
    - SP, segment prediction (eq. 16): a hidden segment from the events around it, against a
      segment of another user.

    A hidden event shows no channel at all: theirs are items and nothing else, and a category left
    to see would tell its item. Not as in the paper: f has no sigmoid, which would keep a score
    from meaning more than odds of e; ỹ of the first three are all values of the channel (as where
    eq. 3 is the cross-entropy), with a bias each, the true ones among them; s of SP is H, what
    the encoder hands on, instead of the last position.
    """

    def __init__(self, spec: Spec, tables: Mapping[str, Any]):
        super().__init__()
        named = spec.training.pretrain.s3
        if named is None:
            raise ValueError("pre-train: `objective: s3` needs `training.pretrain.s3`")
        self._spec = spec
        self._events = spec.scope("sequence")
        channels = {c.name: c for c in self._events if not isinstance(c, DenseChannel)}
        self._item = channels[named.item]
        self._attributes = [channels[name] for name in named.attributes]
        self._table = dict(tables).__getitem__  # owned by the caller, as in `FeatureProjection`
        self.aap = build_heads(self._attributes, tables)
        self.mip = build_heads([self._item], tables)
        self.map = build_heads(self._attributes, tables)
        self.sp = keras.layers.Dense(spec.model.hidden_dim, use_bias=False, name="segment")

    def __call__(
        self, encoder: Any, batch: Batch, step: tf.Tensor, training: bool = True
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """The four losses' weighted sum, plus the routers' losses."""
        seed = tf.stack([tf.constant(self._spec.training.seed, tf.int64), step])
        seed = tf.random.experimental.stateless_fold_in(seed, replica_id())
        of_events, of_segments = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        mask_BL = batch["sequence_mask"]
        drawn_BL = tf.random.stateless_uniform(tf.shape(mask_BL), of_events)
        hidden_BL = mask_BL & (drawn_BL < self._spec.training.pretrain.mask_rate)
        encoded = encoder(hide_events(batch, self._events, hidden_BL), training=training)
        h_BLD = encoded.hidden[:, 1:]  # The leading token is no event.
        found = {
            "aap": self.associated_attributes(batch, training),
            "mip": self._masked(self.mip, [self._item], h_BLD, batch, hidden_BL, training),
            "map": self._masked(self.map, self._attributes, h_BLD, batch, hidden_BL, training),
        }
        segment, aux = self.segment_prediction(encoder, batch, of_segments, training)
        found["sp"] = segment.loss, {"segment": segment}
        loss = tf.add_n([_WEIGHTS[name] * total for name, (total, _) in found.items()])
        values = router_values(encoded.aux)
        for name, (_, parts) in found.items():
            values |= channel_values(name, parts)
        return loss + router_loss(encoded.aux + aux, self._spec.model), values

    def associated_attributes(
        self, batch: Batch, training: bool
    ) -> tuple[tf.Tensor, dict[str, ChannelLoss]]:
        """AAP of every event that has the item and the attribute: the mean over attributes."""
        ids_BL, table = batch[self._item.feature], self._item.table_name
        row_BLD = self._table(table)(ids_BL, rows=batch.get(rows_key(table)))
        there_BL = is_present(self._item, ids_BL)
        row_BLD = tf.cast(row_BLD, tf.float32)
        return self._masked(self.aap, self._attributes, row_BLD, batch, there_BL, training)

    def segment_prediction(
        self, encoder: Any, batch: Batch, seed: tf.Tensor, training: bool
    ) -> tuple[ChannelLoss, tuple]:
        """SP: its loss, how often the own segment scores higher, over the rows that have one; and
        the routers' statistics."""
        inside_BL, other_BL = draw_segments(batch["sequence_mask"], seed)
        outside_BL = batch["sequence_mask"] & ~inside_BL
        views = (
            hide_events(batch, self._events, inside_BL),
            hide_events(batch, self._events, outside_BL),
            hide_events(
                replace_events(batch, self._events, inside_BL, other_BL), self._events, outside_BL
            ),
        )
        encoded = [encoder(view, training=training) for view in views]
        context_BD, own_BD, other_BD = (encoder.pooling.whole(e.hidden, e.mask) for e in encoded)
        query_BD = self.sp(context_BD)
        lead_B = tf.reduce_sum(query_BD * (own_BD - other_BD), axis=1)
        lead_M = tf.boolean_mask(lead_B, tf.reduce_any(inside_BL, axis=1))
        part = mean_over_masked(tf.nn.softplus(-lead_M), tf.cast(lead_M > 0, tf.float32))
        return part, sum((e.aux for e in encoded), ())

    def _masked(
        self,
        heads: Mapping[str, Callable],
        channels: Sequence[Channel],
        x_BLD: tf.Tensor,
        batch: Batch,
        position_BL: tf.Tensor,
        training: bool,
    ) -> tuple[tf.Tensor, dict[str, ChannelLoss]]:
        """What `x` says of the channels at `position`, where they have a value."""
        positions = {c.feature: position_BL & is_present(c, batch[c.feature]) for c in channels}
        return mcp_loss(heads, x_BLD, batch, positions, training=training)


def hide_events(batch: Batch, channels: Sequence[Channel], hidden_BL: tf.Tensor) -> Batch:
    """The batch with all `channels` masked at the places of `hidden_BL`, missing values too."""
    masked = {c.feature: replaced(c, batch[c.feature], hidden_BL) for c in channels}
    return batch | masked


def replace_events(
    batch: Batch, channels: Sequence[Channel], inside_BL: tf.Tensor, other_BL: tf.Tensor
) -> Batch:
    """The batch with other events, of the row before, at the places of `inside_BL`: event
    `other_BL` of it."""
    changed = {}
    for channel in channels:
        own = batch[channel.feature]
        other = tf.gather(tf.roll(own, 1, axis=0), other_BL, batch_dims=1)
        inside = inside_BL[..., tf.newaxis] if own.shape.rank == 3 else inside_BL
        changed[channel.feature] = tf.where(inside, other, own)
    return batch | changed


def draw_segments(mask_BL: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A segment of each row's events, and one as long of the row before (the first's: the last).

    Of 1 to half of the row's events, and no more than the other row has; all lengths, and all
    places for either, are equally likely. A row of fewer than two events has none.

    Args:
      mask_BL: bool, the events, left-aligned.
      seed: int [2].

    Returns:
      The segment's places, bool [B, L]; the other's event for each of them, int32 [B, L].
    """
    events_B = tf.reduce_sum(tf.cast(mask_BL, tf.int32), axis=1)
    others_B = tf.roll(events_B, 1, axis=0)
    longest_B = tf.minimum(events_B // 2, others_B)
    drawn_3B = tf.random.stateless_uniform([3, tf.size(events_B)], seed)

    def below(drawn_B: tf.Tensor, n_B: tf.Tensor) -> tf.Tensor:
        place_B = tf.cast(drawn_B * tf.cast(n_B, tf.float32), tf.int32)
        return tf.minimum(place_B, n_B - 1)  # rounding

    length_B = below(drawn_3B[0], longest_B) + 1
    start_B1 = below(drawn_3B[1], events_B - length_B + 1)[:, tf.newaxis]
    other_start_B1 = below(drawn_3B[2], others_B - length_B + 1)[:, tf.newaxis]
    place_L = tf.range(tf.shape(mask_BL)[1])
    inside_BL = (place_L >= start_B1) & (place_L < start_B1 + length_B[:, tf.newaxis])
    other_BL = tf.where(inside_BL, place_L - start_B1 + other_start_B1, 0)
    return inside_BL, other_BL
