"""Several requests as one run of a signature, each with the answer it would have got alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf import message

from serving import errors
from serving.server.batching import Parameters
from serving.server.contract import Merging, has_rows
from serving.server.native_tensor import Held
from serving.server.saved_model import SavedModel

Arrays = Mapping[str, np.ndarray]


class Group(NamedTuple):
    """Requests with an equal one may be merged. held: inputs that are the same for all of them."""

    signature: str
    outputs: tuple[str, ...]
    shapes: tuple
    held: Held | None = None


def assumed(signature: message.Message, parameters: Parameters) -> Merging | None:
    """How requests may be merged to a signature of which the model says nothing; None: not at all.

    It is taken to treat rows one by one if the first dimension of all its inputs and outputs is of
    unknown size and no other is: any other unknown dimension may depend on the company (an output
    padded to its longest row). A signature that looks so and isn't (a softmax over its rows) has
    to say it (`contract.py`).
    """
    infos = [*signature.inputs.values(), *signature.outputs.values()]
    if not signature.inputs or not all(map(has_rows, infos)):
        return None
    if parameters.pad_variable_length_inputs:
        return Merging(pad=frozenset(signature.inputs))
    fixed = all(dim.size >= 0 for info in infos for dim in info.tensor_shape.dim[1:])
    return Merging() if fixed else None


def shapes_of(inputs: Arrays, merging: Merging) -> tuple | None:
    """What must be equal for two requests to be merged; None if this one can't be at all."""
    rows = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    if len(rows) != 1 or rows == {0}:
        return None  # TensorFlow says what is wrong with it, or that nothing is.
    return tuple(
        (name, array.ndim if name in merging.pad else array.shape[1:])
        for name, array in sorted(inputs.items())
    )


def run_merged(
    model: SavedModel,
    group: Group,
    requests: Sequence[Arrays],
    merging: Merging,
    allowed_sizes: Sequence[int] = (),
) -> list[dict[str, np.ndarray]]:
    """Runs requests of one group together.

    Args:
      requests: one array per input of the signature each.
      allowed_sizes: batch sizes, increasing; a batch is filled up to the next of them with its
        last row.

    Returns:
      Each request's outputs.

    Raises:
      errors.ServingError: TensorFlow's code and message, or FAILED_PRECONDITION: an output hasn't
        one row for each row of the inputs.
    """
    rows = [num_rows(request) for request in requests]
    total = sum(rows)
    missing = next((size for size in allowed_sizes if size >= total), total) - total
    if missing:
        requests = [*requests, _repeated(requests[-1], missing)]
    if len(requests) == 1:
        return [model.run(group.signature, requests, group.outputs, group.held)]
    counts = {merging.trim[name] for name in group.outputs if name in merging.trim}
    fetched = [*group.outputs, *sorted(counts - set(group.outputs))]
    outputs = model.run(group.signature, requests, fetched, group.held)
    for name, array in outputs.items():
        if array.shape[:1] != (total + missing,):
            raise errors.failed_precondition(
                f"output {name} of shape {list(array.shape)} hasn't one row for each of the"
                f" {total + missing} rows of the batch"
            )
    answers, start = [], 0
    for count in rows:
        own = {name: array[start : start + count] for name, array in outputs.items()}
        answers.append({name: _trimmed(name, own, merging) for name in group.outputs})
        start += count
    return answers


def num_rows(request: Arrays) -> int:
    """The first dimension of its inputs, of which `shapes_of` says that they agree."""
    return len(next(iter(request.values())))


def _repeated(request: Arrays, count: int) -> Arrays:
    return {name: np.repeat(array[-1:], count, axis=0) for name, array in request.items()}


def _trimmed(name: str, own: Arrays, merging: Merging) -> np.ndarray:
    if name not in merging.trim:
        return own[name]
    return own[name][:, : own[merging.trim[name]].max()]
