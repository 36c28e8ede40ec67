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
from modules.training.input.shards import Shards, read_shard

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

    Reads no more than the units that overlap the range. Opening one costs about 0.1 s of CPU, so
    where there are many, let each be a unit or more. Every instance is in one batch of an epoch;
    two epochs have different batches in a different order.

    Args:
      epoch, start, stop: integers or int64 scalars, so that one graph reads any range. stop is
        `shards.num_batches` unless given.

    Raises (in the graph):
      tf.errors.InvalidArgumentError: the range is not within the epoch, or a shard is damaged
        (named).
      tf.errors.NotFoundError: a shard is missing (named).
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

    @tf.autograph.experimental.do_not_convert
    def cut(unit: tf.Tensor, instances: tf.Tensor, num_events: tf.Tensor) -> tf.data.Dataset:
        # Instances of one length are in random order: who meets in a batch is new every epoch.
        order = _shuffle(tf.range(tf.size(num_events)), shards.seed, epoch, unit, _INSTANCES)
        by_length = tf.argsort(tf.gather(num_events, order), stable=True)
        instances = tf.gather(instances, tf.gather(order, by_length))
        starts = tf.range(0, tf.size(instances), shards.batch_size)
        starts = _shuffle(starts, shards.seed, epoch, unit, _BATCHES)
        in_range = starts[tf.maximum(start - unit * per_unit, 0) : stop - unit * per_unit]
        return tf.data.Dataset.from_tensor_slices(in_range).map(
            lambda first: instances[first : first + shards.batch_size]
        )

    first_unit = start // per_unit
    # An empty range reads no unit, wherever it is.
    end_unit = tf.where(start < stop, -(-stop // per_unit), first_unit)
    padded = (
        _units(shards, epoch, first_unit, end_unit)
        .flat_map(cut)
        .map(
            padder(transform_output, spec, shards.split, epoch),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    )
    # The graph is as it should be: rewriting it costs a quarter of opening a range.
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return padded.prefetch(4).with_options(options)


def _units(shards: Shards, epoch: tf.Tensor, first: tf.Tensor, end: tf.Tensor) -> tf.data.Dataset:
    """Units [first, end): number, instances string [n] and their events int64 [n]."""
    full = tf.range(shards.num_full_shards, dtype=tf.int64)
    short = tf.range(shards.num_full_shards, len(shards.paths), dtype=tf.int64)
    # A short shard stays last, to end the last unit.
    order = tf.concat([_shuffle(full, shards.seed, epoch), short], axis=0)

    @tf.autograph.experimental.do_not_convert
    def read(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        number = order[place]
        return read_shard(
            tf.gather(shards.paths, number),
            tf.gather(tf.constant(shards.checksums, tf.int64), number),
        )

    @tf.autograph.experimental.do_not_convert
    def flat(unit: tf.Tensor, read: tuple[tf.RaggedTensor, ...]) -> tuple[tf.Tensor, ...]:
        return unit, *(ragged.flat_values for ragged in read)

    num_shards = len(shards.paths)
    first_shard, end_shard = (
        tf.minimum(u * shards.shards_per_unit, num_shards) for u in (first, end)
    )
    of_units = (
        tf.data.Dataset.range(first_shard, end_shard)
        .map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .ragged_batch(shards.shards_per_unit)
    )
    return tf.data.Dataset.zip((tf.data.Dataset.range(first, end), of_units)).map(flat)


def _shuffle(values: tf.Tensor, seed: int, *numbers: int | tf.Tensor) -> tf.Tensor:
    """A permutation of `values` that follows from the seed and the numbers."""
    folded = tf.constant([seed, 0], tf.int64)
    for number in numbers:
        folded = tf.random.fold_in(folded, tf.cast(number, tf.int64))
    return tf.random.experimental.stateless_shuffle(values, folded)
