"""Multi-channel feature projection (MFP): from channels to one vector an event. Eq. 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from data.channels import Channel
from modules.embeddings import table as table_lib
from modules.embeddings.compressed import CompressedTable
from modules.layers.channel_blocks import ChannelBlocks
from modules.layers.norm import layer_norm


class FeatureProjection(keras.layers.Layer):
    """Concatenates every channel's vector, then projects, normalises and activates:

        y = dropout(gelu(LayerNorm(W · [s_category·w_category, s_ID·w_ID, s_dense] + b)))

    SuperMoE eq. 4 is the concatenation; the layer norm and the activation follow it there.
    The paper's `split` of the ID embeddings is where their tables live, not what is computed.

    What each channel brings, and in which order, is in `channel_blocks.py`.

    Args:
      channels: the channels to read, all of one scope.
      tables: table name -> table. Shared between projections and owned by the caller: this
        layer's variables and checkpoint don't include them.
      hidden_dim: D.
      dropout: rate, of the output.

    Raises:
      ValueError: no channels, or a channel's table isn't in `tables`.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        tables: Mapping[str, table_lib.EmbeddingTable | CompressedTable],
        hidden_dim: int,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        # Autocasting would squeeze dense values into float16 before they are cleaned.
        super().__init__(autocast=False, **kwargs)
        self.channels = tuple(channels)
        self._blocks = ChannelBlocks(channels, tables, self.name)
        self.hidden_dim = hidden_dim
        self.projection = keras.layers.Dense(hidden_dim, dtype=self.dtype_policy)
        self.norm = layer_norm(dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def call(self, features: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Projects features.

        Args:
          features: by `channel.feature`: int64 [...] row numbers (multi-valued [..., V]) or
            float32 [...] with NaN for missing; and a localized batch's own rows of the large
            tables (`rows_<table>`). Others are ignored.

        Returns:
          Compute dtype [..., D], the leading axes those of the features.

        Raises:
          KeyError: a channel's feature isn't there.
        """
        concatenated = tf.concat(self._blocks(features, self.compute_dtype), axis=-1)
        # As one matrix of events, because Keras' layer norm is built for one rank.
        flat = tf.reshape(concatenated, [-1, concatenated.shape[-1]])
        hidden = self.dropout(tf.nn.gelu(self.norm(self.projection(flat))), training=training)
        leading = tf.shape(concatenated)[:-1]
        y = tf.reshape(hidden, tf.concat([leading, [self.hidden_dim]], 0))
        return tf.ensure_shape(y, concatenated.shape[:-1] + [self.hidden_dim])
