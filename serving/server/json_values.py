"""JSON values of the REST API into arrays, with TF Serving's checks and messages (json_tensor.cc).

Lists are taken apart by whole levels, so that no Python runs per value.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np

from serving import tensors
from serving.errors import ServingError, invalid

_SHOWN = 200
_MAX_DIMS = 32
"""Of a NumPy array."""
EXACT_INTEGERS = {np.dtype(np.float16): 2**11, np.dtype(np.float32): 2**24}

_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """A request's JSON object.

    Raises:
      ServingError: INVALID_ARGUMENT, it isn't one.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except RecursionError:
        raise invalid("JSON Parse error: it is nested too deep") from None
    except ValueError as error:
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature a request asks for; "" for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {show(document)} not formatted correctly."
            " 'signature_name' key must be a string value."
        )
    return utf8(name).decode()


def to_array(value: Any, dtype: int) -> np.ndarray:
    """The tensor of nested lists, or of one value.

    Args:
      dtype: TensorFlow's number of it.

    Raises:
      ServingError: INVALID_ARGUMENT, the lists are ragged or a value isn't of that type.
    """
    shape, flat = _flatten(value)
    return _convert(flat, dtype).reshape(shape)


def _flatten(value: Any) -> tuple[tuple[int, ...], list]:
    """The shape of nested lists and their values, checked to be as deep and long everywhere."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        if len(shape) == _MAX_DIMS:
            raise invalid(f"JSON Value: lists are nested deeper than {_MAX_DIMS} levels")
        for item in level if set(map(type, level)) != {list} else ():
            if not isinstance(item, list):
                raise invalid(
                    f"JSON Value: {show(item)} found at incorrect level: {len(shape) + 1}"
                    " in the JSON DOM. Expected one more list"
                )
        sizes = set(map(len, level))
        if len(sizes) > 1:
            expected = len(level[0])
            size = next(len(item) for item in level if len(item) != expected)
            raise invalid(
                f"Encountered list at unexpected size: {size} at level: {len(shape)}"
                f" expected size: {expected}"
            )
        shape.append(sizes.pop())
        level = list(itertools.chain.from_iterable(level))
    if list in set(map(type, level)):
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return tuple(shape), level


def _convert(flat: list, dtype: int) -> np.ndarray:
    if dtype == tensors.STRING:
        return _to_strings(flat)
    if dtype not in tensors.DTYPES:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value to type: {tensors.dtype_name(dtype)}",
        )
    target = tensors.DTYPES[dtype]
    allowed = _JSON_TYPES.get(target.kind, {int})
    if not set(map(type, flat)) <= allowed:
        wrong = next(value for value in flat if type(value) not in allowed)
        raise _type_error(wrong, target.name)
    if target.kind == "f":
        return to_floats(flat, target)
    if target.kind in "iu" and flat:
        limits = np.iinfo(str(target))
        for extreme in (min(flat), max(flat)):
            if not limits.min <= extreme <= limits.max:
                raise _type_error(extreme, target.name)
    return np.array(flat, target)


def to_floats(flat: list, target: np.dtype) -> np.ndarray:
    """Integers and floats; refuses integers it can't hold exactly, and finite ones it makes inf."""
    integers = flat if set(map(type, flat)) == {int} else [v for v in flat if type(v) is int]
    limit = EXACT_INTEGERS.get(target, 2**53)
    for extreme in (min(integers), max(integers)) if integers else ():
        if abs(extreme) >= limit:
            raise _lossy(extreme, target)
    doubles = np.array(flat, np.float64)
    with np.errstate(over="ignore"):
        array = doubles.astype(target)
    lost = np.isinf(array) & np.isfinite(doubles)
    if lost.any():
        raise _lossy(flat[int(lost.argmax())], target)
    return array


def _to_strings(flat: list) -> np.ndarray:
    array = np.empty(len(flat), object)
    if set(map(type, flat)) <= {str}:
        array[:] = list(map(utf8, flat))
    else:
        array[:] = list(map(to_bytes, flat))
    return array


def to_bytes(value: object) -> bytes:
    """A string, or what `{"b64": "…"}` encodes."""
    if isinstance(value, str):
        return utf8(value)
    if not isinstance(value, dict):
        raise _type_error(value, "string")
    if not is_base64(value):
        raise invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def utf8(value: str) -> bytes:
    """JSON may hold half of a surrogate pair, which is an error here."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: half of a surrogate pair is no text") from None


def is_base64(value: object) -> bool:
    """Whether it is a string in the form of `{"b64": "…"}`."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def shortest(array: np.ndarray) -> np.ndarray:
    """Doubles that print in the digits a float32 (or 16) needs: 0.1, not 0.10000000149011612."""
    return array.astype("S").astype(np.float64)


def short(value: float) -> float:
    """`shortest` of one float32."""
    return float(str(np.float32(value)))


def _type_error(value: object, expected: str) -> ServingError:
    return invalid(
        f"JSON Value: {show(value)} Type: {kind(value)} is not of expected type: {expected}"
    )


def _lossy(value: object, target: np.dtype) -> ServingError:
    return invalid(
        f"Cannot convert JSON value: {show(value)} to {target.name} without loss of precision."
    )


def kind(value: object) -> str:
    """RapidJSON's name for its type."""
    if value is None or isinstance(value, bool):
        return {None: "Null", False: "False", True: "True"}[value]
    names = {"dict": "Object", "list": "Array", "str": "String"}
    return names.get(type(value).__name__, "Number")


def show(value: object) -> str:
    """JSON of it, cut short: a message must not repeat a whole request."""
    try:
        # In pieces: nobody waits for the JSON of megabytes of which a line is shown.
        text = "".join(itertools.islice(json.JSONEncoder().iterencode(value), _SHOWN))
    except RecursionError:
        return "…"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
