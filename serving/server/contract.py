"""What a model says of itself beyond its signatures: `assets.extra/serving.json`, if it is there.

    {"batching": {"<signature>": {"pad": ["<input>", ...], "trim": {"<output>": "<count>"}},
                  "<signature whose rows depend on each other>": null},
     "users": {"signature": "serving_default", "encode": "score_and_embed", "score": "score",
               "user_features": ["sequence_item", ...], "tower_features": ["context_country", ...],
               "bypass": ["target_position"]},
     "added_tasks": {"signature": "added_tasks", "backbone": "5e9b02c4d1a87f36",
                     "outputs": {"impression": "impression", "user": "user"}}}

TF Serving ignores the file. Every name in it is checked against the signatures when the model is
loaded.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Collection, Mapping

import numpy as np
from google.protobuf import message

from serving import errors, tensors

FILE = pathlib.Path("assets.extra", "serving.json")
EXAMPLES = "examples"
EMBEDDING = "embedding"


@dataclasses.dataclass(frozen=True)
class Merging:
    """How requests to one signature may be merged, row after row.

    Attributes:
      pad: inputs whose dimensions after the first may be filled up with zeros or empty strings,
        because the model knows the true lengths.
      trim: output [B, K, ...] -> the int64 [B] output with the length of each of its rows. A
        request alone gets K = the largest of its own rows.
    """

    pad: frozenset[str] = frozenset()
    trim: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Users:
    """How a request is split into encoding its users and scoring their candidates.

    Attributes:
      signature: what is asked for: `examples` [B] in, any outputs.
      encode: the same, and with the output `embedding` [B, D].
      score: the same outputs from `examples` and `embedding`.
      user_features: the features `embedding` depends on.
      tower_features: those of them that `score` needs too.
      bypass: features that make an example unfit for the split.
    """

    signature: str
    encode: str
    score: str
    user_features: frozenset[str]
    tower_features: frozenset[str]
    bypass: frozenset[str]


@dataclasses.dataclass(frozen=True)
class AddedTasks:
    """The tasks that a model takes beside its own.

    Attributes:
      signature: `examples` [B] and weights in, whose first dimension is the tasks'.
      backbone: which model the weights must have been trained on, in hexadecimal digits: their
        folder has its name.
      outputs: kind of task -> the output that has the tasks of this kind on its last axis.
    """

    signature: str
    backbone: str
    outputs: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Contract:
    """What one model says.

    Attributes:
      batching: signature -> how its requests may be merged; None: never.
      users: None, the model doesn't split.
      added_tasks: None, it takes none.
    """

    batching: Mapping[str, Merging | None] = dataclasses.field(default_factory=dict)
    users: Users | None = None
    added_tasks: AddedTasks | None = None


def read(path: str, signatures: Mapping[str, message.Message]) -> Contract:
    """Reads a SavedModel's contract; an empty one if it has none.

    Args:
      path: the SavedModel's directory.
      signatures: its signatures.

    Raises:
      errors.ServingError: FAILED_PRECONDITION, the file is malformed or doesn't fit them.
    """
    file = pathlib.Path(path, FILE)
    if not file.exists():
        return Contract()
    try:
        fields = _Fields("$", json.loads(file.read_text(encoding="utf-8")))
        batching = fields.inner("batching")
        contract = Contract(
            {name: _merging(batching, name, _known(name, signatures)) for name in batching.names()},
            _users(fields.inner("users"), signatures) if "users" in fields.names() else None,
            _added_tasks(fields.inner("added_tasks"), signatures)
            if "added_tasks" in fields.names()
            else None,
        )
        fields.only("batching", "users", "added_tasks")
    except (OSError, ValueError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise errors.failed_precondition(f"{file}: {error}") from None
    return contract


class _Fields:
    """A JSON object and its place in the file (`$.batching.score`), for messages that name it."""

    def __init__(self, place: str, value: object):
        if not isinstance(value, dict):
            raise ValueError(f"{place} must be an object")
        self.place = place
        self._fields = value

    def names(self) -> Collection[str]:
        return self._fields.keys()

    def inner(self, name: str) -> _Fields:
        return _Fields(f"{self.place}.{name}", self._fields.get(name, {}))

    def is_null(self, name: str) -> bool:
        return self._fields[name] is None

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{self.place}: {name} must be a text")
        return value

    def texts(self, name: str) -> frozenset[str]:
        values = self._fields.get(name, [])
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise ValueError(f"{self.place}: {name} must be a list of texts")
        return frozenset(values)

    def only(self, *known: str) -> None:
        for name in self._fields:
            if name not in known:
                raise ValueError(f"{self.place}: unknown field {name!r}, not one of {known}")


def _known(name: str, signatures: Mapping[str, message.Message]) -> message.Message:
    if name not in signatures:
        raise ValueError(f"the model has no signature {name!r}, only {sorted(signatures)}")
    return signatures[name]


def _merging(batching: _Fields, name: str, signature: message.Message) -> Merging | None:
    if batching.is_null(name):
        return None
    fields = batching.inner(name)
    fields.only("pad", "trim")
    pad, trim = fields.texts("pad"), fields.inner("trim")
    counts = {name: trim.text(name) for name in trim.names()}
    _check_names(f"{fields.place}: pad: input", pad, signature.inputs)
    _check_names(f"{fields.place}: trim: output", {*counts, *counts.values()}, signature.outputs)
    for trimmed, count in counts.items():
        lengths = signature.outputs[count]
        _check_trim(fields.place, trimmed, signature.outputs[trimmed], count, lengths)
    for kind, there in (("input", signature.inputs), ("output", signature.outputs)):
        for alias, info in there.items():
            if not has_rows(info):
                raise ValueError(
                    f"{fields.place}: {kind} {alias!r} has no first dimension of unknown size:"
                    " requests can't be merged"
                )
    return Merging(pad, counts)


def _check_trim(
    place: str, name: str, trimmed: message.Message, count: str, lengths: message.Message
) -> None:
    if trimmed.tensor_shape.unknown_rank or len(trimmed.tensor_shape.dim) < 2:
        raise ValueError(f"{place}: trim: output {name!r} has no second dimension to trim")
    rank = len(lengths.tensor_shape.dim)
    if lengths.dtype != tensors.NUMBERS[np.dtype(np.int64)] or rank != 1:
        raise ValueError(f"{place}: trim: output {count!r} isn't int64 [B]")


def has_rows(info: message.Message) -> bool:
    """Whether a TensorInfo's first dimension is of unknown size, as a batch's is."""
    shape = info.tensor_shape
    return not shape.unknown_rank and len(shape.dim) > 0 and shape.dim[0].size == -1


def _users(fields: _Fields, signatures: Mapping[str, message.Message]) -> Users:
    lists = ("user_features", "tower_features", "bypass")
    fields.only("signature", "encode", "score", *lists)
    users = Users(
        fields.text("signature"),
        fields.text("encode"),
        fields.text("score"),
        *map(fields.texts, lists),
    )
    for name in sorted(users.tower_features - users.user_features):
        raise ValueError(f"{fields.place}: tower_features: {name!r} isn't among user_features")
    asked = _known(users.signature, signatures)
    for name, inputs, outputs in (
        (users.signature, {EXAMPLES}, set()),
        (users.encode, {EXAMPLES}, {*asked.outputs, EMBEDDING}),
        (users.score, {EXAMPLES, EMBEDDING}, set(asked.outputs)),
    ):
        signature = _known(name, signatures)
        if set(signature.inputs) != inputs:
            raise ValueError(
                f"{fields.place}: {name!r} takes {sorted(signature.inputs)}, not {sorted(inputs)}"
            )
        _check_names(f"{fields.place}: {name!r}: output", outputs, signature.outputs)
    return users


def _added_tasks(fields: _Fields, signatures: Mapping[str, message.Message]) -> AddedTasks:
    fields.only("signature", "backbone", "outputs")
    kinds = fields.inner("outputs")
    added = AddedTasks(
        fields.text("signature"),
        fields.text("backbone"),
        {kind: kinds.text(kind) for kind in kinds.names()},
    )
    if not re.fullmatch("[0-9a-f]+", added.backbone):
        raise ValueError(f"{fields.place}: backbone must be lower-case hexadecimal digits")
    signature = _known(added.signature, signatures)
    _check_names(f"{fields.place}: input", {EXAMPLES}, signature.inputs)
    _check_names(f"{fields.place}: output", added.outputs.values(), signature.outputs)
    for name, info in signature.inputs.items():
        if not has_rows(info) or info.dtype not in {*tensors.DTYPES, tensors.STRING}:
            raise ValueError(f"{fields.place}: input {name!r} has no first dimension for the tasks")
    for name in added.outputs.values():
        shape = signature.outputs[name].tensor_shape
        if shape.unknown_rank or len(shape.dim) < 2 or shape.dim[-1].size != -1:
            raise ValueError(f"{fields.place}: output {name!r} has no last axis for the tasks")
    return added


def _check_names(place: str, names: Collection[str], there: Collection[str]) -> None:
    for name in sorted(set(names) - set(there)):
        raise ValueError(f"{place} {name!r} isn't there, only {sorted(there)}")
