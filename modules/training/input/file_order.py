"""A split read in file order, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.training.input.parsing import padder
from modules.training.input.records import kept_instances

_BATCHES_PER_SORT = 16


def file_order_batches(
    files: Sequence[str],
    transform_output: tft.TFTransformOutput,
    spec: Spec,
    split: str,
    batch_size: int,
    *,
    min_events: int = 0,
    min_targets: int = 1,
) -> tf.data.Dataset:
    """One pass of padded batches (`modules.features.pad`) over one split.

    Instances are sorted by length within 16 batches, stably, so that a batch pads little.

    Args:
      files: GZIP TFRecord files of transformed instances.
      split: 'train' or 'eval'; other targets (and for train, later events) are cut away.
      min_events, min_targets: instances with fewer (after the cut) are left out.
    """

    @tf.autograph.experimental.do_not_convert
    def cut(serialized: tf.Tensor, num_events: tf.Tensor, _: tf.Tensor) -> tf.data.Dataset:
        by_length = tf.gather(serialized, tf.argsort(num_events, stable=True))
        return tf.data.Dataset.from_tensor_slices(by_length).batch(batch_size)

    blocks = kept_instances(
        files,
        transform_output,
        spec,
        split,
        block=batch_size * _BATCHES_PER_SORT,
        min_events=min_events,
        min_targets=min_targets,
    )
    return (
        blocks.flat_map(cut)
        .map(
            padder(transform_output, spec, split, epoch=0),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .prefetch(4)
    )
