"""Transformed instances on disk -> shuffled, length-sorted, padded batches (tf.data)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.features import as_ragged, lengths, pad, select_split

_SHUFFLE_BUFFER = 8192
_BATCHES_PER_SORT = 16
"""Instances are sorted by length within this many batches, so that a batch pads little."""
_LENGTH_MULTIPLE = 8


def batches(
    files: Sequence[str],
    transform_output: tft.TFTransformOutput,
    spec: Spec,
    split: str,
    batch_size: int,
    *,
    seed: int | None = None,
    min_events: int = 0,
    min_targets: int = 1,
) -> tf.data.Dataset:
    """One epoch of padded batches (`modules.features.pad`) of one split.

    Args:
      files: GZIP TFRecord files of transformed instances.
      split: 'train' or 'eval'; other targets (and for train, later events) are cut away.
      seed: shuffles with it (a new order every epoch); None reads in file order.
      min_events, min_targets: instances with fewer (after the cut) are left out.
    """
    parse = _parser(transform_output, spec, split)

    @tf.autograph.experimental.do_not_convert
    def kept(serialized: tf.Tensor) -> dict[str, tf.RaggedTensor]:
        ragged = parse(serialized)
        num_events, num_targets = lengths(ragged, spec)
        keep = (num_events >= min_events) & (num_targets >= min_targets)
        rows = tf.where(keep)[:, 0]
        rows = tf.gather(rows, tf.argsort(tf.gather(num_events, rows)))
        return {name: tf.gather(value, rows) for name, value in ragged.items()}

    @tf.autograph.experimental.do_not_convert
    def slices(ragged: dict[str, tf.RaggedTensor]) -> tf.data.Dataset:
        num_rows = next(iter(ragged.values())).nrows()
        starts = tf.range(0, num_rows, batch_size, dtype=tf.int64)
        if seed is not None:
            starts = tf.random.shuffle(starts)
        return tf.data.Dataset.from_tensor_slices(starts).map(
            lambda start: pad(
                {name: value[start : start + batch_size] for name, value in ragged.items()},
                spec,
                _LENGTH_MULTIPLE,
            )
        )

    dataset = _records(files)
    if seed is not None:
        dataset = dataset.shuffle(_SHUFFLE_BUFFER, seed=seed, reshuffle_each_iteration=True)
    dataset = dataset.batch(batch_size * _BATCHES_PER_SORT)
    dataset = dataset.map(kept, num_parallel_calls=1, deterministic=True)
    return dataset.flat_map(slices).prefetch(4)


def count_batches(dataset: tf.data.Dataset) -> int:
    """Batches in one epoch; reads the data once, without training on it."""
    return int(dataset.reduce(tf.constant(0, tf.int64), lambda n, _: n + 1))


def _records(files: Sequence[str]) -> tf.data.Dataset:
    paths = tf.data.Dataset.from_tensor_slices(sorted(files))
    return paths.interleave(
        lambda path: tf.data.TFRecordDataset(path, compression_type="GZIP"),
        cycle_length=4,
    )


def _parser(
    transform_output: tft.TFTransformOutput, spec: Spec, split: str
) -> Callable[[tf.Tensor], dict[str, tf.RaggedTensor]]:
    feature_spec = transform_output.transformed_feature_spec()
    unused = {"user_id", "user_activity", "window_last"}
    unused |= {t.oracle_feature for t in spec.tasks}
    feature_spec = {k: v for k, v in feature_spec.items() if k not in unused}

    def parse(serialized: tf.Tensor) -> dict[str, tf.RaggedTensor]:
        features = tf.io.parse_example(serialized, feature_spec)
        return select_split(as_ragged(features, spec), spec, split)

    return parse
