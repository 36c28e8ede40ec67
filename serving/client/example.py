"""Plain Python or NumPy values to the serialized `tf.Example` a request carries."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from serving.protos import Example

_MISSING = {"bytes_list": b"", "int64_list": -1, "float_list": math.nan}
"""How an instance writes a missing value (docs/contracts.md)."""


class ExampleError(ValueError):
    """A feature that no tf.Example can hold; the message names it."""


def example(features: Mapping[str, object]) -> bytes:
    """One user's instance, serialized.

    Args:
      features: name -> a value or a flat list (or array) of them: text or bytes, whole numbers,
        or fractions; one kind a feature. A whole number among fractions becomes one: a feature
        the model reads as float must hold at least one written so (`1.0`). None among others is
        a missing value ('' for text, -1 for whole numbers, NaN for fractions); an empty list or
        None alone leaves the feature out.

    Raises:
      ExampleError: a nested list, mixed kinds, a list of None only, or another type.
    """
    message = Example()
    for name, value in features.items():
        values = _flat(name, value)
        if values:
            kind = _kind(name, values)
            filled: list = [_MISSING[kind] if v is None else v for v in values]
            if kind == "bytes_list":
                filled = [v.encode() if isinstance(v, str) else v for v in filled]
            elif kind == "int64_list":
                _check_int64(name, filled)
            getattr(message.features.feature[name], kind).value.extend(filled)
    return message.SerializeToString(deterministic=True)


def _flat(name: str, value: object) -> list:
    if value is None:
        return []
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def _kind(name: str, values: list) -> str:
    types = {type(v) for v in values} - {type(None)}
    if types and types <= {str, bytes}:
        return "bytes_list"
    if types and types <= {int, bool}:
        return "int64_list"
    if types and types <= {int, float}:
        return "float_list"
    if not types:
        raise ExampleError(f"{name}: only missing values: leave the feature out instead")
    names = ", ".join(sorted(t.__name__ for t in types))
    raise ExampleError(f"{name}: a flat list of text, whole numbers or fractions, not of {names}")


def _check_int64(name: str, values: list[int]) -> None:
    for value in values:
        if not -(2**63) <= value < 2**63:
            raise ExampleError(f"{name}: {value} doesn't fit a 64-bit integer")
