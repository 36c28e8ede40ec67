"""Means over a batch that synchronous replicas hold in parts.

Every loss and every recorded value is this replica's *share* of the mean over the whole batch: its
sum divided by the count over all replicas. Shares add up to what one replica would have computed
alone, however unevenly labels and tokens fall.
"""

from __future__ import annotations

import tensorflow as tf


def sum_over_replicas(count: tf.Tensor) -> tf.Tensor:
    """A count's sum over the replicas of a synchronous step; itself outside of one."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return count
    return context.all_reduce(tf.distribute.ReduceOp.SUM, count)


def share_of_mean(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """`total` / `count`, 0 where nothing was counted; `count` is already over all replicas."""
    return tf.math.divide_no_nan(total, count)


def share_of_same(value: tf.Tensor) -> tf.Tensor:
    """This replica's share of what every replica computed alike."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return value / context.num_replicas_in_sync


def replica_id() -> tf.Tensor:
    """This replica's number in a synchronous step, int32 scalar; 0 outside of one."""
    context = tf.distribute.get_replica_context()
    return tf.convert_to_tensor(
        0 if context is None else context.replica_id_in_sync_group, tf.int32
    )
