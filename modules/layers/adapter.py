"""Model patches: small networks in a frozen encoder's blocks (PeterRec §3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import tensorflow as tf
import tf_keras as keras

from data import spec as spec_lib


class Adapter(keras.layers.Layer):
    """φ_up(relu(φ_down(x))), the model patch of PeterRec eq. 10 without its shortcut.

    The 1×1 convolutions are dense layers. φ_up starts at zero, so that an inserted patch changes
    nothing until it is trained (Houlsby et al. 2019).

    Args:
      bottleneck_dim: d, much smaller than x's width.
    """

    def __init__(self, bottleneck_dim: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.bottleneck_dim = bottleneck_dim

    def build(self, shape: tf.TensorShape) -> None:
        policy = self.dtype_policy
        self.down = keras.layers.Dense(self.bottleneck_dim, activation="relu", dtype=policy)
        self.up = keras.layers.Dense(shape[-1], kernel_initializer="zeros", dtype=policy)
        super().build(shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """float [..., D] -> [..., D]."""
        return self.up(self.down(x))

    def get_config(self) -> dict:
        return super().get_config() | {"bottleneck_dim": self.bottleneck_dim}


class Patch(Protocol):
    """What a block asks wherever a patch may be: what goes on from there.

    Args of a call:
      made: [..., D], what the block's own layer made.
      given: [..., D], what that layer read.
      place: which layer of the block, one of those its `insertions` name.
    """

    def __call__(self, made: tf.Tensor, given: tf.Tensor, place: str) -> tf.Tensor: ...


def unpatched(made: tf.Tensor, given: tf.Tensor, place: str) -> tf.Tensor:
    """The `Patch` of a block without adapters."""
    return made


class BlockPatch(keras.layers.Layer):
    """The adapters of one block, PeterRec eq. 12:

        serial:    made + adapter(made)
        parallel:  made + adapter(given)

    Serial is eq. 10. In parallel the paper's patch keeps its shortcut too, which adds the layer's
    input once more: the pre-trained block is another one before anything is tuned. Here the
    block's own shortcut has to do.

    Args:
      places: where the block has an adapter.
    """

    def __init__(self, places: Sequence[str], settings: spec_lib.Adapters, **kwargs: Any):
        super().__init__(**kwargs)
        self._parallel = settings.insertion.startswith("parallel")
        self._adapters = {
            place: Adapter(settings.bottleneck_dim, name=place, dtype=self.dtype_policy)
            for place in places
        }

    def call(self, made: tf.Tensor, given: tf.Tensor, place: str) -> tf.Tensor:
        if place not in self._adapters:
            return made
        return made + self._adapters[place](given if self._parallel else made)


def block_patches(
    blocks: Sequence[keras.layers.Layer], settings: spec_lib.Adapters
) -> list[BlockPatch]:
    """One for each of an encoder's blocks, which stay as they are: patches are given to a call.

    Args:
      blocks: their `insertions` say which places an insertion means.
    """
    return [
        BlockPatch(block.insertions[settings.insertion], settings, name=f"patch_{i}")
        for i, block in enumerate(blocks)
    ]


def with_patches(
    blocks: Sequence[keras.layers.Layer], patches: Sequence[Patch] | None
) -> Iterator[tuple[keras.layers.Layer, Patch]]:
    """Each block with its patch; None: with `unpatched`."""
    return zip(blocks, [unpatched] * len(blocks) if patches is None else patches, strict=True)
