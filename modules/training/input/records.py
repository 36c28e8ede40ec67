"""Transform's TFRecord files -> the serialized instances that a split is trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf
import tensorflow_transform as tft

from data.spec import Spec
from modules.features import lengths
from modules.training.input import users
from modules.training.input.parsing import parser


def kept_instances(
    files: Sequence[str],
    transform_output: tft.TFTransformOutput,
    spec: Spec,
    split: str,
    *,
    block: int,
    min_events: int,
    min_targets: int,
    user_share: float = 1.0,
) -> tf.data.Dataset:
    """Blocks of `block` instances in file order, of which those long enough are kept.

    Args:
      files: GZIP TFRecord files of transformed instances.
      min_events, min_targets: instances with fewer (after the cut to `split`) are left out.
      user_share: of the users, whose instances are kept: those of a smaller share, and others.

    Returns:
      Dataset of (serialized string [n], num_events int64 [n], block's size int64 []).
    """
    parse = parser(transform_output, spec, split)

    @tf.autograph.experimental.do_not_convert
    def kept(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        num_events, num_targets = lengths(parse(serialized), spec)
        keep = (num_events >= min_events) & (num_targets >= min_targets)
        if user_share < 1.0:
            keep &= users.place(serialized, transform_output, spec, users.SHARE) < user_share
        rows = tf.where(keep)[:, 0]
        size = tf.size(serialized, tf.int64)
        return tf.gather(serialized, rows), tf.gather(num_events, rows), size

    paths = tf.data.Dataset.from_tensor_slices(sorted(files))
    records = paths.interleave(
        lambda path: tf.data.TFRecordDataset(path, compression_type="GZIP"),
        cycle_length=4,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return records.batch(block).map(kept, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


@contextlib.contextmanager
def naming_damaged(files: Sequence[str]) -> Iterator[None]:
    """Around reading `files`: an error in one of them is raised again with its name.

    Raises:
      ValueError: a file is cut short or damaged.
    """
    try:
        yield
    except tf.errors.DataLossError as error:
        raise ValueError(
            f"{_damaged(files)}: cut short or damaged ({error.message}); have it written anew"
        ) from error


def _damaged(files: Sequence[str]) -> str:
    for path in sorted(files):
        try:
            for _ in tf.data.TFRecordDataset(path, compression_type="GZIP").batch(4096):
                pass
        except tf.errors.DataLossError:
            return path
    return f"one of {sorted(files)}"
