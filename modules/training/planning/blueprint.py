"""A phase's variables and tensors, counted on the real model without giving them memory.

The model, its optimizers and its large tables' state are built by the code that trains them, with
variables that have a shape and no value, and its step is traced. So 10¹² parameters are counted in
seconds on a laptop, and nothing here repeats a formula of the model's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

from data.spec import Spec
from modules.embeddings.local_tables import LocalTables
from modules.embeddings.table import EmbeddingTable, ids_key
from modules.layers.moe_ffn import MoEFeedForward
from modules.training.input.localize import large_tables
from modules.training.planning.batch import synthetic_batch, with_empty_rows
from modules.training.planning.phase import PhaseName, build, phase_of
from modules.training.planning.size import BatchSize
from modules.training.planning.tensors import most_at_once, trace
from modules.training.step import Step, tables_of

Kind = Literal["dense", "expert", "small table", "large table", "optimizer", "counter"]


_WITH_CLIPPED = 2
"""Gradients, all at once, and their clipped copies."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A variable.

    Attributes:
      table: whose rows or state it is.
      beside: the weight, by its place among all, that it is kept with; None: its own place.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Kind
    table: str | None
    beside: int | None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * tf.as_dtype(self.dtype).size


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """Attributes:
    weights: in the order in which they are made.
    experts: of an MoE-FFN, of which a token goes through one.
    tuned: parameters that are trained: the loss has a gradient for them; all rows of large tables.
    gradients: bytes of each that is as large as its weight.
    step_bytes: of all tensors of a step that are there at once, gradients included.
    distinct: rows of each large table that one batch reads, and pushes a gradient for.
    """

    phase: PhaseName
    weights: tuple[Weight, ...]
    experts: int
    tuned: int
    gradients: tuple[int, ...]
    step_bytes: int
    distinct: dict[str, int]

    def of(self, *kinds: Kind) -> tuple[Weight, ...]:
        return tuple(weight for weight in self.weights if weight.kind in kinds)


@tf.autograph.experimental.do_not_convert  # no Python branch depends on data
def draw(
    spec: Spec, name: PhaseName, rows: Mapping[str, int], size: BatchSize, own_ids: bool = False
) -> Blueprint:
    """Builds a phase, every large table in one shard, and traces its step.

    Args:
      own_ids: as `LocalTables` takes it.
    """
    full = synthetic_batch(spec, rows, size)
    recorder = _Recorder()
    with recorder.recording(), tf.__internal__.FuncGraph("plan").as_default():
        batch = with_empty_rows(full, spec, rows)
        module, loss = build(spec, name, rows, batch)
        of_model = len(recorder.variables)
        step = Step(module, loss, phase_of(spec, name), 1)
        of_step = len(recorder.variables)
        LocalTables(step.large, phase_of(spec, name).table_optimizer, own_ids=own_ids)
        trainable = list(module.trainable_variables)
        _, lives, gradients = trace(loss, batch, trainable)
    localized = with_empty_rows(full, spec, rows)
    dense = tuple(
        weight.shape.num_elements() * weight.dtype.size
        for weight, gradient in zip(trainable, gradients, strict=True)
        if isinstance(gradient, tf.Tensor)
    )
    reached = [
        weight.shape.num_elements()
        for weight, gradient in zip(trainable, gradients, strict=True)
        if gradient is not None
    ]
    weights = _classified(recorder, module, of_model, of_step)
    large = {table.name for table in tables_of(module) if table.large and table.trainable}
    rows_of_large = [w.elements for w in weights if w.table in large and w.beside is None]
    return Blueprint(
        phase=name,
        weights=weights,
        experts=spec.model.num_experts,
        tuned=sum(reached) + sum(rows_of_large),
        gradients=dense,
        step_bytes=max(most_at_once(spec, name, rows, full, lives), _WITH_CLIPPED * sum(dense)),
        distinct={
            table: int(tf.size(localized[ids_key(table)])) for table in large_tables(spec, rows)
        },
    )


def _classified(
    recorder: _Recorder, module: tf.Module, of_model: int, of_step: int
) -> tuple[Weight, ...]:
    tables = [m for m in module.submodules if isinstance(m, EmbeddingTable)]
    owner = {id(v): table for table in tables for v in table.variables}
    experts = {
        id(v)
        for layer in module.submodules
        if isinstance(layer, MoEFeedForward)
        for v in (layer.w_in_EDF, layer.w_out_EFD)
    }
    found: list[Weight] = []
    for place, (variable, beside) in enumerate(recorder.variables):
        table = owner.get(id(variable))
        kind: Kind
        if table is not None:
            kind = "large table" if table.large else "small table"
        elif place >= of_step:
            kind = "large table"
        elif place >= of_model:
            kind = "optimizer"
        elif id(variable) in experts:
            kind = "expert"
        else:
            kind = "dense" if variable.trainable else "counter"
        name = table.name if table is not None else None
        if beside is not None and kind == "large table":
            name = found[beside].table
        found.append(
            Weight(
                variable.name.removesuffix(":0"),
                tuple(variable.shape),
                variable.dtype.name,
                kind,
                name,
                beside,
            )
        )
    return tuple(found)


class _Recorder:
    """Makes variables without values, and remembers them."""

    def __init__(self) -> None:
        self.variables: list[tuple[tf.Variable, int | None]] = []
        # Of all strategies the one that says what is to be colocated, and does nothing else.
        self._strategy = tf.distribute.OneDeviceStrategy("/CPU:0")

    def recording(self) -> Any:
        stack = contextlib.ExitStack()
        stack.enter_context(self._strategy.scope())
        stack.enter_context(tf.variable_creator_scope(self._make))
        return stack

    def _make(self, _: Callable, **asked: Any) -> tf.Variable:
        shape, dtype = _shape_and_dtype(**asked)
        variable = resource_variable_ops.UninitializedVariable(
            trainable=asked.get("trainable", True), name=asked.get("name"), shape=shape, dtype=dtype
        )
        # As TensorFlow asks for this very class: it reads rows of no other in place.
        variable.__class__ = resource_variable_ops.ResourceVariable
        variable._distribute_strategy = self._strategy  # who asks to colocate checks it
        beside = asked.get("colocate_with")
        self.variables.append((variable, None if beside is None else self._place_of(beside)))
        return variable

    def _place_of(self, variable: tf.Variable) -> int:
        return next(i for i, (known, _) in enumerate(self.variables) if known is variable)


def _shape_and_dtype(
    initial_value: Any = None, shape: Any = None, dtype: Any = None, **_: Any
) -> tuple[tf.TensorShape, tf.DType]:
    if shape is None or dtype is None:
        if callable(initial_value):
            # For its shape only: in a graph nothing is computed.
            with tf.__internal__.FuncGraph("initial_value").as_default():
                initial_value = tf.convert_to_tensor(initial_value())
        initial_value = tf.convert_to_tensor(initial_value)
        shape, dtype = shape or initial_value.shape, dtype or initial_value.dtype
    return tf.TensorShape(shape), tf.as_dtype(dtype)


def total(weights: Iterable[Weight]) -> int:
    """Bytes."""
    return sum(weight.bytes for weight in weights)
