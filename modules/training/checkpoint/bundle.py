"""Tensor bundles (`<prefix>.index`, `<prefix>.data-…`): named tensors in TensorFlow's format."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from modules.training.checkpoint.error import CheckpointError, DamagedError

# TensorFlow's reader raises some of its errors as Python's.
_READ_ERRORS = (tf.errors.OpError, IndexError, ValueError, RuntimeError)


def write(prefix: str, tensors: Mapping[str, np.ndarray | tf.Tensor]) -> None:
    """Writes tensors of any dtype and shape; makes the folder where needed.

    Raises:
      CheckpointError: they can't be written; names the prefix.
    """
    try:
        pathlib.Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        with tf.device("CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=list(tensors),
                shape_and_slices=[""] * len(tensors),
                tensors=[tf.convert_to_tensor(tensor) for tensor in tensors.values()],
            )
    except (OSError, tf.errors.OpError) as error:
        raise CheckpointError(f"{prefix} was not written: {message(error)}") from error


class Reader:
    """Reads a bundle's tensors, each checked against the checksum that it was written with.

    Attributes:
      shapes: by name.
      dtypes: by name.

    Raises:
      DamagedError: it is missing, truncated or changed; names the prefix.
    """

    def __init__(self, prefix: str):
        self._prefix = prefix
        with _as_damage(prefix):
            self._reader = tf.train.load_checkpoint(prefix)
        self.shapes: dict[str, list[int]] = self._reader.get_variable_to_shape_map()
        self.dtypes: dict[str, tf.DType] = self._reader.get_variable_to_dtype_map()

    def __getitem__(self, name: str) -> np.ndarray:
        with _as_damage(self._prefix):
            return self._reader.get_tensor(name)


def message(error: Exception) -> str:
    """The first line of an error; TensorFlow appends where its graph was built."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return text.partition("\n")[0]


@contextlib.contextmanager
def _as_damage(prefix: str) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        raise DamagedError(f"{prefix} can't be read: {message(error)}") from error
