"""How much a training step needs at once, from the lives of the traced step's tensors."""

from __future__ import annotations

import collections
import dataclasses
import itertools
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
_WITHOUT_MEMORY = ("ReadVariableOp", "Const", "Placeholder", "VarHandleOp", *_VIEWS)
_ALIKE = 0.95
"""Of the tensors, that the narrowed model must have too."""
_A_WHILE = 12
"""Tensors that must agree before two models are taken to go on alike."""
_LOOK_AHEAD = 40
"""Tensors that may be in one model only, at one place."""
_Shape = tuple[int | None, ...] | None
"""None for a size that the data decide, or for an unknown rank."""


@dataclasses.dataclass(frozen=True)
class Life:
    """Of a tensor: it is there from turn `made` to turn `used`, both included. made_by: the type
    of operation."""

    made_by: str
    shape: _Shape
    item_bytes: int
    made: int
    used: int

    def bytes(self, as_run: _Shape) -> int:
        """With the unknown sizes from `as_run`; 0 where those are unknown too."""
        if self.shape is None:
            return 0
        if as_run is None or len(as_run) != len(self.shape):
            as_run = (None,) * len(self.shape)
        sizes = (
            mine if mine is not None else its for mine, its in zip(self.shape, as_run, strict=True)
        )
        return math.prod(size or 0 for size in sizes) * self.item_bytes


def trace(
    loss: LossFn, batch: Batch, weights: list[tf.Variable]
) -> tuple[list[tf.Tensor], list[Life], list[Any]]:
    """Traces forward and backward passes in the default graph.

    Returns:
      All tensors that have memory of their own, in an order that depends on the model's operations
      alone; their lives; and the gradients, which live to the end, because they are clipped by
      the norm of all.
    """
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    with tf.GradientTape() as tape:
        value, _ = loss(batch, tf.constant(0, tf.int64))
    gradients = tape.gradient(value, weights)
    operations = graph.get_operations()[before:]
    turns = _turns(operations)
    used: dict[Any, int] = {}
    for operation in operations:
        for tensor in operation.inputs:
            memory = _memory_of(tensor).ref()
            used[memory] = max(used.get(memory, 0), turns[operation.name])
    flat = tf.nest.flatten(gradients, expand_composites=True)
    used |= {_memory_of(g).ref(): max(turns.values()) for g in flat if g is not None}
    tensors, lives = [], []
    for operation in operations:
        made = turns[operation.name]
        for tensor in operation.outputs if operation.type not in _WITHOUT_MEMORY else ():
            tensors.append(tensor)
            size = tensor.dtype.size or 0  # none: a resource
            last = used.get(tensor.ref(), made)
            lives.append(Life(operation.type, _shape(tensor), size, made, last))
    return tensors, lives, gradients


def _turns(operations: Sequence[tf.Operation]) -> dict[str, int]:
    """When each operation runs: as soon as what it needs is there, beside others, as
    TensorFlow's executor takes them."""
    turns: dict[str, int] = {}
    for operation in operations:
        needs = [tensor.op for tensor in operation.inputs] + operation.control_inputs
        turns[operation.name] = 1 + max((turns.get(need.name, 0) for need in needs), default=0)
    return turns


def most_at_once(
    spec: Spec, name: PhaseName, rows: Mapping[str, int], full: Batch, lives: Sequence[Life]
) -> int:
    """Bytes of the tensors that are there at the same time, at the most.

    Sizes that only data decide (masked positions, tokens of an expert, distinct ids) don't depend
    on the widths, so they are taken from a run of the narrowed model on the same batch.

    Raises:
      RuntimeError: the narrowed model has too few of the same operations.
    """
    as_run = _aligned(lives, *_as_run(spec, name, rows, full))
    change: dict[int, int] = collections.defaultdict(int)
    for life, shape in zip(lives, as_run, strict=True):
        size = life.bytes(shape)
        change[life.made] += size
        change[life.used + 1] -= size
    return max(itertools.accumulate(change[place] for place in sorted(change)), default=0)


def _aligned(
    lives: Sequence[Life], others: Sequence[Life], shapes: Sequence[_Shape]
) -> list[_Shape]:
    """The shapes of the other model's tensors that are made as ours are.

    A few have no counterpart: a gradient has one operation less where two sizes happen to be equal.
    """
    mine, its = ([(life.made_by, life.item_bytes) for life in one] for one in (lives, others))
    aligned: list[_Shape] = [None] * len(mine)
    here = there = matched = 0
    while here < len(mine) and there < len(its):
        if mine[here] != its[there]:
            here, there = _next_alike(mine, its, here, there)
            continue
        aligned[here] = shapes[there]
        here, there, matched = here + 1, there + 1, matched + 1
    if matched < _ALIKE * len(mine):
        raise RuntimeError(f"{matched} of a step's {len(mine)} tensors are in the narrowed model")
    return aligned


def _next_alike(mine: Sequence[Any], its: Sequence[Any], here: int, there: int) -> tuple[int, int]:
    """The nearest places from which both go on alike for a while. (`difflib` finds the best
    alignment, and takes minutes for it.)"""
    for skipped in range(1, _LOOK_AHEAD):
        for i in range(skipped + 1):
            a, b = here + i, there + skipped - i
            if mine[a : a + _A_WHILE] == its[b : b + _A_WHILE]:
                return a, b
    return len(mine), len(its)


def _as_run(
    spec: Spec, name: PhaseName, rows: Mapping[str, int], full: Batch
) -> tuple[list[Life], list[_Shape]]:
    """The narrowed model's tensors, with the shapes that they have when it is run."""
    narrowed, few = narrow(spec, rows)
    # As many rows of large tables as there are, in no process: their ids stay distinct.
    few |= {table: rows[table] for table in large_tables(spec, rows)}
    batch = dict(full)
    for table, channels in spec.tables.items():
        for channel in channels:
            batch[channel.feature] = tf.minimum(full[channel.feature], few[table] - 1)
    with sharded_by(lambda rows, dim: 0):
        module, loss = build(narrowed, name, few, with_empty_rows(batch, narrowed, few))
    lives: list[Life] = []
    shapes: list[_Shape] = []
    unknown: list[int] = []

    @tf.function(autograph=False)
    def sizes() -> list[tf.Tensor]:
        localized = with_empty_rows(batch, narrowed, few)
        tensors, traced, _ = trace(loss, localized, list(module.trainable_variables))
        lives.extend(traced)
        shapes.extend(map(_shape, tensors))
        unknown.extend(i for i, shape in enumerate(shapes) if shape is not None and None in shape)
        return [tf.shape(tensors[i]) for i in unknown]

    for place, found in zip(unknown, sizes(), strict=True):
        shapes[place] = tuple(found.numpy().tolist())
    return lives, shapes


def _memory_of(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in _VIEWS:
        tensor = tensor.op.inputs[0]
    return tensor


def _shape(tensor: tf.Tensor) -> _Shape:
    return None if tensor.shape.rank is None else tuple(tensor.shape)
