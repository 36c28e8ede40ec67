"""The tensors that a training step keeps from its forward pass for its backward pass."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from data.spec import Spec
from modules.embeddings.sharding import sharded_by
from modules.features import Batch
from modules.training.input.localize import large_tables
from modules.training.planning.batch import with_empty_rows
from modules.training.planning.narrow import narrow
from modules.training.planning.phase import PhaseName, build
from modules.training.step import LossFn

_VIEWS = ("Identity", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "Unpack", "EnsureShape")
"""Operations whose output is their first input's memory."""
_WITHOUT_MEMORY = ("ReadVariableOp", "Const", "Placeholder", "VarHandleOp")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """shape: None for a size that the data decide, or for an unknown rank."""

    shape: tuple[int | None, ...] | None
    item_bytes: int

    @classmethod
    def of(cls, tensor: tf.Tensor) -> Tensor:
        shape = None if tensor.shape.rank is None else tuple(tensor.shape)
        return cls(shape, tensor.dtype.size)

    def bytes(self, as_run: Sequence[int] | None = None) -> int:
        """With the unknown sizes from `as_run`; 0 where that is unknown too."""
        if self.shape is None:
            return 0
        sizes = [
            (as_run[axis] if as_run else 0) if size is None else size
            for axis, size in enumerate(self.shape)
        ]
        return math.prod(sizes) * self.item_bytes


def trace(
    loss: LossFn, batch: Batch, weights: list[tf.Variable]
) -> tuple[list[tf.Tensor], list[Any]]:
    """Traces forward and backward passes in the default graph.

    Returns:
      The forward pass' tensors that the backward pass reads and that have memory of their own, in
      an order that depends on the model's operations alone; and the gradients.
    """
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    with tf.GradientTape() as tape:
        value, _ = loss(batch, tf.constant(0, tf.int64))
    between = len(graph.get_operations())
    gradients = tape.gradient(value, weights)
    operations = graph.get_operations()
    forward = {operation.name for operation in operations[before:between]}
    read = (tensor for operation in operations[between:] for tensor in operation.inputs)
    owned = {tensor.ref(): tensor for tensor in map(_memory_of, read) if tensor.op.name in forward}
    return [t for t in owned.values() if t.op.type not in _WITHOUT_MEMORY], gradients


def saved_tensors(
    spec: Spec, name: PhaseName, rows: Mapping[str, int], full: Batch, tensors: Sequence[Tensor]
) -> tuple[int, ...]:
    """Bytes of each of `trace`'s tensors.

    Sizes that only data decide (masked positions, tokens of an expert, distinct ids) don't depend
    on the widths, so they are taken from a run of the narrowed model on the same batch.

    Raises:
      RuntimeError: the narrowed model isn't made of the same operations.
    """
    as_run = _shapes_as_run(spec, name, rows, full)
    if len(as_run) != len(tensors):
        raise RuntimeError(
            f"{name}: {len(tensors)} saved tensors, but {len(as_run)} in the narrowed model"
        )
    return tuple(tensor.bytes(shape) for tensor, shape in zip(tensors, as_run, strict=True))


def _shapes_as_run(
    spec: Spec, name: PhaseName, rows: Mapping[str, int], full: Batch
) -> list[list[int] | None]:
    narrowed, few = narrow(spec, rows)
    # As many rows of large tables as there are, in no process: their ids stay distinct.
    few |= {table: rows[table] for table in large_tables(spec, rows)}
    batch = dict(full)
    for table, channels in spec.tables.items():
        for channel in channels:
            batch[channel.feature] = tf.minimum(full[channel.feature], few[table] - 1)
    with sharded_by(lambda rows, dim: 0):
        module, loss = build(narrowed, name, few, with_empty_rows(batch, narrowed, few))
    ranked: list[bool] = []

    @tf.function(autograph=False)
    def sizes() -> list[tf.Tensor]:
        localized = with_empty_rows(batch, narrowed, few)
        tensors, _ = trace(loss, localized, list(module.trainable_variables))
        ranked.extend(tensor.shape.rank is not None for tensor in tensors)
        return [tf.shape(tensor) for tensor in tensors if tensor.shape.rank is not None]

    found = iter(sizes())
    return [next(found).numpy().tolist() if known else None for known in ranked]


def _memory_of(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in _VIEWS:
        tensor = tensor.op.inputs[0]
    return tensor
