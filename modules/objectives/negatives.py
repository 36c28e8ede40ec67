"""Sampled negatives: other items in place of the one a user took (PeterRec §3.3)."""

from __future__ import annotations

import tensorflow as tf

from data.spec import Spec
from modules.embeddings.table import NUM_RESERVED
from modules.features import DOMAIN, Batch, knowledge_features
from modules.replicas import replica_id

_STREAM = 1
"""Keeps these draws apart from those of masks, which have the same seed."""


def with_negatives(batch: Batch, spec: Spec, step: tf.Tensor) -> Batch:
    """A batch with N = `training.finetune.negatives.count` targets more beside each.

    A negative is another item in the same place: it sees the same events at the same moment, has
    the item's features as another target of the batch offered it, and no labels. Items are drawn
    uniformly among the distinct ones of this replica's batch, so that neither a catalogue is needed
    nor a row that the batch hasn't brought along.

    Args:
      step: int64 scalar; with the seed and the replica it decides the draws.

    Returns:
      The batch with K · (1 + N) targets: its own K, then K · N, the N of each side by side.
      `target_mask` is False for negatives of targets that no task ranks, and where the target's
      own item was drawn.
    """
    negatives = spec.training.finetune.negatives
    assert negatives is not None
    item_BK = batch[f"candidate_{negatives.item}"]
    (B, K), N = tf.unstack(tf.shape(item_BK)), negatives.count
    ranked_BK = batch["target_mask"] & _ranked(batch, spec)
    drawn_BJ = _draw(batch, item_BK, tf.stack([B, K * N]), spec.training.seed, step)
    extended = dict(batch)
    channels = {channel.name for channel in spec.moment_channels(negatives.moment)}
    of_moment = {f for f, channel in _read_of(spec).items() if channel in channels}
    for feature in [name for name in _read_of(spec) if name in batch]:
        values = batch[feature]
        flat = tf.reshape(values, tf.concat([[B * K], tf.shape(values)[2:]], 0))
        own = feature in of_moment
        other = _beside(values, N) if own else tf.gather(flat, drawn_BJ)
        extended[feature] = tf.concat([values, other], axis=1)
    other_BJ = tf.not_equal(extended[f"candidate_{negatives.item}"][:, K:], _beside(item_BK, N))
    counts_BJ = _beside(ranked_BK, N) & other_BJ
    extended["target_mask"] = tf.concat([batch["target_mask"], counts_BJ], axis=1)
    position_BK = batch["target_position"]
    extended["target_position"] = tf.concat([position_BK, _beside(position_BK, N)], axis=1)
    for task in spec.tasks:
        labels_BK = batch[task.label_feature]
        none_BJ = tf.fill(tf.shape(drawn_BJ), tf.constant(float("nan"), labels_BK.dtype))
        extended[task.label_feature] = tf.concat([labels_BK, none_BJ], axis=1)
    return extended


def split_negatives(values_BT: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """What belongs to a batch's own targets, [B, K], and to their negatives, [B, K, count]."""
    B, T = tf.unstack(tf.shape(values_BT))
    K = T // (1 + count)
    return values_BT[:, :K], tf.reshape(values_BT[:, K:], [B, K, count])


def _draw(
    batch: Batch, item_BK: tf.Tensor, shape: tf.Tensor, seed: int, step: tf.Tensor
) -> tf.Tensor:
    """Places among the B · K targets, each the first that offers its item."""
    offered_T = tf.reshape(batch["target_mask"] & (item_BK >= NUM_RESERVED), [-1])
    places_P = tf.where(offered_T)[:, 0]
    items_U, number_P = tf.unique(tf.gather(tf.reshape(item_BK, [-1]), places_P))
    num_items = tf.size(items_U)
    first_U = tf.math.unsorted_segment_min(places_P, number_P, num_items)
    stream = tf.stack([tf.constant(seed, tf.int64), tf.cast(step, tf.int64)])
    for number in (_STREAM, replica_id()):
        stream = tf.random.experimental.stateless_fold_in(stream, number)
    drawn = tf.random.stateless_uniform(shape, stream, 0, tf.maximum(num_items, 1), tf.int32)
    # Without any item there is no positive either: any place will do.
    return tf.gather(tf.concat([first_U, [0]], axis=0), drawn)


def _ranked(batch: Batch, spec: Spec) -> tf.Tensor:
    """bool [B, K]: of label 1 in a task that ranks."""
    tasks = [task for task in spec.tasks if task.loss != "pointwise"]
    return tf.reduce_any([tf.equal(batch[task.label_feature], 1.0) for task in tasks], axis=0)


def _read_of(spec: Spec) -> dict[str, str]:
    """A batch's features of a target -> the candidate channels that they are read from."""
    read = {channel.feature: channel.name for channel in spec.scope("candidate")}
    domain = {DOMAIN: spec.domain.channel} if spec.domain is not None else {}
    return read | knowledge_features(spec) | domain


def _beside(values_BK: tf.Tensor, count: int) -> tf.Tensor:
    """Of each target, for each of its negatives: [B, K, …] -> [B, K · count, …]."""
    return tf.repeat(values_BK, count, axis=1)
