"""One vector a field, all of one width, which factorization machines multiply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.channels import Channel
from modules.layers.channel_blocks import ChannelBlocks, Tables

_DENSE_STDDEV = 0.05


class FieldEmbedding(keras.layers.Layer):
    """v_f = W_f · x_f, x_f what channel f brings to a `ChannelBlocks`.

    A factorization machine stores v of every value in a table of its own. Our tables have rows of
    many widths, shared with the history: W_f makes v of them.

    Args:
      channels, tables: of `ChannelBlocks`.
      dim: D.

    Attributes:
      channels: in the order of the fields.

    Raises:
      ValueError: no channels, or a channel's table isn't in `tables`.
    """

    def __init__(self, channels: Sequence[Channel], tables: Tables, dim: int, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)  # Dense values are cast once cleaned.
        self._blocks = ChannelBlocks(channels, tables, self.name)
        self.channels = tuple(channel for group in self._blocks.groups for channel in group)
        self._maps_CWD = []
        for number, group in enumerate(self._blocks.groups):
            width = self._blocks.width(group)
            # Fields start as small as tables' rows: the sum of all products is then near zero.
            stddev = _DENSE_STDDEV if group[0].kind == "dense" else width**-0.5
            weight = self.add_weight(
                f"map_{number}",
                (len(group), width, dim),
                initializer=keras.initializers.RandomNormal(stddev=stddev),
            )
            self._maps_CWD.append(weight)

    def call(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Features as `ChannelBlocks` takes them -> compute dtype [..., F, D]."""
        blocks = self._blocks(features, self.compute_dtype)
        groups = zip(self._blocks.groups, blocks, self._maps_CWD, strict=True)
        return tf.concat([_mapped(*of_group) for of_group in groups], axis=-2)


def _mapped(group: tuple[Channel, ...], block: tf.Tensor, map_CWD: tf.Tensor) -> tf.Tensor:
    """A group's block [..., C·W] -> [..., C, D]."""
    C, W, D = map_CWD.shape
    # A dense group's values come first, then their absences.
    by_channel = group[0].kind != "dense"
    # As one list of events: where `...` is several axes and C is 1, TensorFlow 2.16's einsum is
    # wrong on CPUs with oneDNN.
    x = tf.reshape(block, [-1, C, W] if by_channel else [-1, W, C])
    equation = "ncw,cwd->ncd" if by_channel else "nwc,cwd->ncd"
    y = tf.einsum(equation, x, tf.cast(map_CWD, block.dtype))
    y = tf.reshape(y, tf.concat([tf.shape(block)[:-1], [C, D]], 0))
    return tf.ensure_shape(y, block.shape[:-1] + [C, D])
