"""One added task in a file: what it is called, what it was trained on, and its weights."""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import message

from serving import tensors
from serving.server.contract import AddedTasks

SUFFIX = ".npz"
MAX_BYTES = 64 * 2**20
"""Of a file's arrays, unpacked."""

_ABOUT = "task"
_ARRAY = ".npy"


class BundleError(ValueError):
    """A file that can't be served; the message says why."""


class TaskBundle(NamedTuple):
    """per: the kind of task, a key of `AddedTasks.outputs`; weights: each input of the signature
    without its first dimension, which is the tasks'."""

    name: str
    per: str
    weights: dict[str, np.ndarray]


def read(
    path: pathlib.Path, declared: AddedTasks, inputs: Mapping[str, message.Message]
) -> TaskBundle:
    """Reads a NumPy archive (.npz) with an array a weight and, as `task`, the JSON of the rest.

    Args:
      declared: what the model says of the tasks it takes.
      inputs: name -> TensorInfo of the weights that its signature takes.

    Raises:
      BundleError: the file is damaged or half written, too large, of another model, or doesn't
        fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, declared, inputs)
    except BundleError:
        raise
    except Exception as error:  # Whatever the readers of ZIP, NumPy and JSON make of a damaged one.
        raise BundleError(f"damaged or half written ({type(error).__name__}: {error})") from None


def _read(
    archive: zipfile.ZipFile, declared: AddedTasks, inputs: Mapping[str, message.Message]
) -> TaskBundle:
    """Nothing is unpacked before it is known to be wanted."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > MAX_BYTES:
        raise BundleError(f"{unpacked} bytes unpacked; {MAX_BYTES} are allowed")
    about = json.loads(_array(archive, _ABOUT).item())
    name, per = _text(about, "name"), _text(about, "per")
    if _text(about, "backbone") != declared.backbone:
        raise BundleError(
            f"trained on another model, {about['backbone']!r}, not {declared.backbone!r}: train it"
            " again on this one"
        )
    if per not in declared.outputs:
        raise BundleError(f"a task per {per!r}; the model takes {sorted(declared.outputs)}")
    there = {member.removesuffix(_ARRAY) for member in archive.namelist()} - {_ABOUT}
    for weight in sorted(inputs.keys() ^ there):
        raise BundleError(f"{weight} is {'missing' if weight in inputs else 'no weight of it'}")
    weights = {weight: _array(archive, weight) for weight in inputs}
    for weight, info in inputs.items():
        _check(weight, weights[weight], info)
    return TaskBundle(name, per, weights)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name + _ARRAY) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def stacked(
    bundles: list[TaskBundle], inputs: Mapping[str, message.Message]
) -> dict[str, np.ndarray]:
    """The weights of T tasks [T, ...]: where theirs differ in size, the smaller ones are filled up
    with zeros, which a narrower bottleneck is."""
    return {
        name: _stacked([bundle.weights[name] for bundle in bundles], info)
        for name, info in inputs.items()
    }


def _stacked(parts: list[np.ndarray], info: message.Message) -> np.ndarray:
    least = [max(dim.size, 0) for dim in info.tensor_shape.dim[1:]]
    shape = [max(sizes) for sizes in zip(least, *(part.shape for part in parts), strict=True)]
    whole = np.zeros([len(parts), *shape], tensors.DTYPES[info.dtype])
    for task, part in enumerate(parts):
        place = (slice(task, task + 1), *map(slice, part.shape))
        whole[place] = part
    return whole


def _text(about: Any, key: str) -> str:
    value = about.get(key) if isinstance(about, dict) else None
    # A lone surrogate isn't printable: JSON can have it, UTF-8 and so protobuf can't.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise BundleError(f"its {_ABOUT!r} doesn't say {key!r}, in printable characters")
    return value


def _check(name: str, array: np.ndarray, info: message.Message) -> None:
    wanted = [dim.size for dim in info.tensor_shape.dim[1:]]
    fits = len(wanted) == array.ndim and all(
        size in (-1, found) for size, found in zip(wanted, array.shape, strict=True)
    )
    if not fits or array.dtype != tensors.DTYPES[info.dtype]:
        raise BundleError(
            f"{name} is {array.dtype} {list(array.shape)}, not"
            f" {tensors.dtype_name(info.dtype)} {wanted}"
        )
    if not np.isfinite(array).all():
        raise BundleError(f"{name} isn't finite")
