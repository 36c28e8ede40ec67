"""TensorProto to NumPy and back, as TensorFlow reads and writes them.

Data travels as `tensor_content` (numbers as raw little-endian bytes, no copy on reading) or in the
dtype's typed field, where a short list repeats its last value (tensor.proto). Strings are object
arrays of `bytes`.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from google.protobuf import message

from serving.protos import TensorProto

MAX_BYTES = 256 << 20
"""Largest message either end takes, and so the largest tensor one may expand to."""

STRING = 7
_FIELDS = {
    1: (np.float32, "float_val"),
    2: (np.float64, "double_val"),
    3: (np.int32, "int_val"),
    4: (np.uint8, "int_val"),
    5: (np.int16, "int_val"),
    6: (np.int8, "int_val"),
    9: (np.int64, "int64_val"),
    10: (np.bool_, "bool_val"),
    17: (np.uint16, "int_val"),
    19: (np.float16, "half_val"),
    22: (np.uint32, "uint32_val"),
    23: (np.uint64, "uint64_val"),
}
DTYPES = {number: np.dtype(dtype) for number, (dtype, _) in _FIELDS.items()}
"""TensorFlow's dtype number -> NumPy's; strings (7) have none of their own."""
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


class TensorError(ValueError):
    """A tensor that can't be read or written; the message says why."""


def dtype_name(number: int) -> str:
    """`float32`, `string`, …; a number the project doesn't handle is named as such."""
    if number == STRING:
        return "string"
    return DTYPES[number].name if number in DTYPES else f"unsupported dtype {number}"


def in_order(outputs: Mapping[str, message.Message]) -> list[tuple[str, message.Message]]:
    """A response's outputs by name, whose they are (`user_id`) first: protobuf's maps come in
    another order each time."""
    return sorted(outputs.items(), key=lambda output: (output[0] != "user_id", output[0]))


def to_array(proto: message.Message) -> np.ndarray:
    """Reads a TensorProto.

    Returns:
      An array of the proto's shape; read-only, a view of the message, for numbers in
      `tensor_content`.

    Raises:
      TensorError: unsupported dtype, unknown or negative shape, or data that doesn't fit it.
    """
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise TensorError(f"shape {shape} isn't fully known")
    size = math.prod(shape)
    if proto.dtype == STRING:
        values = proto.string_val
        if proto.tensor_content:
            values = _content_strings(proto.tensor_content, shape, size)
        return _strings(values, shape, size)
    if proto.dtype not in _FIELDS:
        raise TensorError(dtype_name(proto.dtype))
    dtype = DTYPES[proto.dtype]
    if proto.tensor_content:
        if len(proto.tensor_content) != size * dtype.itemsize:
            raise TensorError(
                f"tensor_content has {len(proto.tensor_content)} bytes, shape {shape} of "
                f"{dtype.name} needs {size * dtype.itemsize}"
            )
        return _reshape(np.frombuffer(proto.tensor_content, dtype), shape)
    flat = _typed_values(proto, dtype)
    if flat.size > size:
        raise TensorError(f"{flat.size} values for shape {shape}")
    if flat.size < size:
        _check_expansion(size * dtype.itemsize, shape)
        fill = flat[-1] if flat.size else dtype.type(0)
        flat = np.concatenate([flat, np.full(size - flat.size, fill, dtype)])
    return _reshape(flat, shape)


def _typed_values(proto: message.Message, dtype: np.dtype) -> np.ndarray:
    """Small integers travel as int32, half floats as the bits of one."""
    field = _FIELDS[proto.dtype][1]
    values = getattr(proto, field)
    wire = np.dtype(np.int32) if field in ("int_val", "half_val") else dtype
    flat = np.fromiter(values, wire, count=len(values))
    if field == "half_val":
        return flat.astype(np.uint16).view(np.float16)
    return flat.astype(dtype, copy=False)


def _reshape(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return flat.reshape(shape)
    except ValueError as error:  # more dimensions, or larger ones, than NumPy holds
        raise TensorError(f"shape {shape}: {error}") from None


def _strings(values: Sequence[bytes], shape: tuple[int, ...], size: int) -> np.ndarray:
    if len(values) > size:
        raise TensorError(f"{len(values)} strings for shape {shape}")
    _check_expansion(8 * (size - len(values)), shape)
    array = np.empty(size, object)
    array[: len(values)] = values
    array[len(values) :] = values[-1] if values else b""
    return _reshape(array, shape)


def _content_strings(content: bytes, shape: tuple[int, ...], size: int) -> list[bytes]:
    """The lengths of all as varints, then all bytes (DecodeStringList in tensor_coding.cc)."""
    lengths: list[int] = []
    start = 0
    while len(lengths) < size and start < len(content):
        length, start = _varint(content, start)
        lengths.append(length)
    if len(lengths) < size or start + sum(lengths) != len(content):
        raise TensorError(f"tensor_content doesn't hold just the strings of shape {shape}")
    strings = []
    for length in lengths:
        strings.append(content[start : start + length])
        start += length
    return strings


def _varint(content: bytes, start: int) -> tuple[int, int]:
    """The unsigned 32-bit number at `start`, seven bits a byte, lowest first; and its end."""
    value = 0
    for i, byte in enumerate(content[start : start + 5]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value & 0xFFFFFFFF, start + i + 1
    raise TensorError("tensor_content doesn't begin with the lengths of its strings")


def _check_expansion(num_bytes: int, shape: tuple[int, ...]) -> None:
    """A few bytes of request must not ask for gigabytes by repeating a value."""
    if num_bytes > MAX_BYTES:
        raise TensorError(f"shape {shape} is larger than the {MAX_BYTES >> 20} MB a tensor may be")


def to_proto(
    array: np.ndarray, proto: message.Message | None = None, *, content: bool = True
) -> message.Message:
    """Writes an array into a TensorProto.

    Args:
      array: of a dtype in `DTYPES`, or strings (`bytes` or `str` objects, NumPy 'S' or 'U').
      proto: an empty TensorProto to fill; a new one unless given.
      content: numbers as `tensor_content` (fast) or else in typed fields, as TF Serving answers.

    Returns:
      The TensorProto.

    Raises:
      TensorError: a dtype TensorFlow or this project has no counterpart for.
    """
    proto = TensorProto() if proto is None else proto
    array = np.asarray(array)
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if array.dtype.kind in "OSU":
        proto.dtype = STRING
        proto.string_val.extend(map(_bytes, array.ravel().tolist()))
        return proto
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype not in NUMBERS:
        raise TensorError(f"dtype {array.dtype} has no tensor type here")
    proto.dtype = NUMBERS[array.dtype]
    if content:
        proto.tensor_content = array.tobytes()
    else:
        flat = array.view(np.uint16) if array.dtype == np.float16 else array
        getattr(proto, _FIELDS[proto.dtype][1]).extend(flat.ravel().tolist())
    return proto


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise TensorError(f"a string tensor can't hold {value!r:.60} ({type(value).__name__})")
