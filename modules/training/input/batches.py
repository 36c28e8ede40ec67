"""Any range of an epoch's batches, as a pure function of (shards, epoch): graph ops only.

An epoch shuffles the shards, takes `shards_per_unit` of them at a time, and in such a unit
shuffles the instances, sorts them by length (so that a batch pads little), cuts them into
batches and shuffles those. All of it follows from (seed, epoch, unit), so a batch's number
is a position that any process can read from, whatever was read before.
"""

from __future__ import annotations

import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.training.input.parsing import padder
from modules.training.input.shards import Shards, split_length

_INSTANCES, _BATCHES = 0, 1
"""What is shuffled within a unit: each by its own seed."""


def epoch_batches(
    shards: Shards,
    transform_output: tft.TFTransformOutput,
    spec: Spec,
    epoch: int | tf.Tensor,
    start: int | tf.Tensor = 0,
    stop: int | tf.Tensor | None = None,
) -> tf.data.Dataset:
    """Batches [start, stop) of an epoch (`modules.features.pad`), in order.

    Reads no more than the units that overlap the range. Every instance is in one batch of an
    epoch; two epochs have different batches in a different order.

    Args:
      epoch, start, stop: integers or int64 scalars, so that one graph reads any range. stop is
        `shards.num_batches` unless given.

    Raises (in the graph):
      tf.errors.InvalidArgumentError: the range is not within the epoch, or a shard is missing or
        damaged (named).
    """
    stop = shards.num_batches if stop is None else stop
    epoch, start, stop = (tf.cast(x, tf.int64) for x in (epoch, start, stop))
    within = tf.debugging.Assert(
        (start >= 0) & (start <= stop) & (stop <= shards.num_batches),
        ["batches from", start, "to", stop, "of", shards.num_batches, "an epoch"],
    )
    with tf.control_dependencies([within] if within is not None else []):
        start, stop = tf.identity(start), tf.identity(stop)
    per_unit = shards.batches_per_unit
    first_unit = start // per_unit
    # An empty range reads no unit, wherever it is.
    end_unit = tf.where(start < stop, -(-stop // per_unit), first_unit)
    units = tf.data.Dataset.range(first_unit, end_unit)
    numbers = _shard_order(shards, epoch)
    end_shard = tf.minimum(end_unit * shards.shards_per_unit, len(shards.paths))
    first_shard = tf.minimum(first_unit * shards.shards_per_unit, end_shard)
    records = (
        tf.data.Dataset.range(first_shard, end_shard)
        .map(
            tf.autograph.experimental.do_not_convert(lambda place: _read(shards, numbers[place])),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .ragged_batch(shards.shards_per_unit)
    )

    @tf.autograph.experimental.do_not_convert
    def cut(unit: tf.Tensor, of_shards: tf.RaggedTensor) -> tf.data.Dataset:
        instances, starts = _mixed(of_shards.flat_values, shards, epoch, unit)
        in_range = starts[tf.maximum(start - unit * per_unit, 0) : stop - unit * per_unit]
        return tf.data.Dataset.from_tensor_slices(in_range).map(
            lambda first: instances[first : first + shards.batch_size]
        )

    batches = tf.data.Dataset.zip((units, records)).flat_map(cut)
    return batches.map(
        padder(transform_output, spec, shards.split),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    ).prefetch(4)


def _shard_order(shards: Shards, epoch: tf.Tensor) -> tf.Tensor:
    """Numbers of the shards, int64, shuffled; a short one stays last, to end the last unit."""
    full = tf.range(shards.num_full_shards, dtype=tf.int64)
    shuffled = _shuffle(full, shards.seed, epoch)
    short = tf.range(shards.num_full_shards, len(shards.paths), dtype=tf.int64)
    return tf.concat([shuffled, short], axis=0)


def _mixed(
    records: tf.Tensor, shards: Shards, epoch: tf.Tensor, unit: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """A unit's serialized instances by length, string [n]; and where its batches start, in order.

    Instances of equal length are in random order, so who meets in a batch is new every epoch.
    """
    shuffled = _shuffle(records, shards.seed, epoch, unit, _INSTANCES)
    serialized, num_events = split_length(shuffled)
    by_length = tf.argsort(num_events, stable=True)
    starts = tf.range(0, tf.size(records, tf.int64), shards.batch_size, dtype=tf.int64)
    return tf.gather(serialized, by_length), _shuffle(starts, shards.seed, epoch, unit, _BATCHES)


def _shuffle(values: tf.Tensor, seed: int, *numbers: int | tf.Tensor) -> tf.Tensor:
    """A permutation of `values` that follows from the seed and the numbers."""
    folded = tf.constant([seed, 0], tf.int64)
    for number in numbers:
        folded = tf.random.fold_in(folded, tf.cast(number, tf.int64))
    return tf.random.experimental.stateless_shuffle(values, folded)


def _read(shards: Shards, number: tf.Tensor) -> tf.Tensor:
    """All records of a shard, string [n].

    A damaged one is noticed by its count: the error of the record reader doesn't name the file.
    """
    size = tf.minimum(
        shards.num_instances - number * shards.shard_instances, shards.shard_instances
    )
    path = tf.gather(tf.constant(shards.paths), number)
    records = (
        tf.data.TFRecordDataset(path, compression_type="GZIP")
        .ignore_errors()
        .batch(shards.shard_instances)
        .concatenate(tf.data.Dataset.from_tensors(tf.constant([], tf.string)))
        .take(1)
        .get_single_element()
    )
    complete = tf.debugging.Assert(
        tf.equal(tf.size(records, tf.int64), size),
        [path, "missing, cut short or damaged: instances read", tf.size(records), "of", size],
    )
    with tf.control_dependencies([complete]):
        return tf.identity(records)
