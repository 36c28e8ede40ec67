"""NumPy arrays into TensorFlow's own tensors and back, one copy each way."""

import ctypes
import math
import weakref
from collections.abc import Mapping, Sequence

import grpc
import numpy as np

from serving import errors, tensors
from serving.server import c_api
from serving.server.c_api import QUICK, STRING_SIZE


def from_arrays(parts: Sequence[np.ndarray]) -> int:
    """A new TF_Tensor with the parts' values; `QUICK.TF_DeleteTensor` frees it.

    Args:
      parts: of one dtype in `tensors.DTYPES`, or `bytes` objects; joined along the first dimension.
        Where other dimensions differ, the smaller ones are filled up with zeros or empty strings.
    """
    shape = parts[0].shape
    if len(parts) > 1:
        row = tuple(map(max, zip(*(part.shape[1:] for part in parts), strict=True)))
        shape = (sum(map(len, parts)), *row)
        parts = [_padded(part, row) for part in parts]
    dims = (ctypes.c_int64 * len(shape))(*shape)
    dtype = parts[0].dtype
    if dtype.hasobject:
        num_bytes = STRING_SIZE * math.prod(shape)
        tensor = QUICK.TF_AllocateTensor(tensors.STRING, dims, len(shape), num_bytes)
        _copy_strings(parts, QUICK.TF_TensorData(tensor), num_bytes)
        return tensor
    num_bytes = dtype.itemsize * math.prod(shape)
    tensor = QUICK.TF_AllocateTensor(tensors.NUMBERS[dtype], dims, len(shape), num_bytes)
    address = QUICK.TF_TensorData(tensor)
    for part in parts:
        if part.nbytes:
            ctypes.memmove(address, np.ascontiguousarray(part).ctypes.data, part.nbytes)
            address += part.nbytes
    return tensor


class Held:
    """Tensors made once and fed to many runs; freed with the last reference.

    Attributes:
      tensors: input -> TF_Tensor. Runs only read them, any number at once.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.tensors = {name: from_arrays([array]) for name, array in arrays.items()}
        made = pointers(len(self.tensors))
        made[:] = list(self.tensors.values())
        weakref.finalize(self, delete, made)


def _padded(part: np.ndarray, row: tuple[int, ...]) -> np.ndarray:
    if part.shape[1:] == row:
        return part
    padded = np.full((len(part), *row), b"" if part.dtype.hasobject else 0, part.dtype)
    padded[tuple(map(slice, part.shape))] = part
    return padded


def _copy_strings(parts: Sequence[np.ndarray], address: int, num_bytes: int) -> None:
    ctypes.memset(address, 0, num_bytes)  # all zero is an empty TF_TString
    for part in parts:
        for value in part.ravel().tolist():
            QUICK.TF_StringCopy(address, value, len(value))
            address += STRING_SIZE


def to_array(tensor: int) -> np.ndarray:
    """The values of a TF_Tensor, copied; read-only for numbers.

    Raises:
      errors.ServingError: its dtype has no counterpart here.
    """
    number = QUICK.TF_TensorType(tensor)
    shape = tuple(QUICK.TF_Dim(tensor, i) for i in range(QUICK.TF_NumDims(tensor)))
    address = QUICK.TF_TensorData(tensor)
    if number == tensors.STRING:
        array = np.empty(math.prod(shape), object)
        for i in range(array.size):
            string = address + STRING_SIZE * i
            data = QUICK.TF_StringGetDataPointer(string)
            array[i] = ctypes.string_at(data, QUICK.TF_StringGetSize(string))
        return array.reshape(shape)
    if number not in tensors.DTYPES:
        raise errors.ServingError(
            grpc.StatusCode.UNIMPLEMENTED, f"an output has {tensors.dtype_name(number)}"
        )
    num_bytes = QUICK.TF_TensorByteSize(tensor)
    content = ctypes.string_at(address, num_bytes) if num_bytes else b""
    return np.frombuffer(content, tensors.DTYPES[number]).reshape(shape)


def delete(pointers: ctypes.Array) -> None:
    """Frees every tensor of a `TF_Tensor*` array that isn't null."""
    for tensor in pointers:
        if tensor:
            QUICK.TF_DeleteTensor(tensor)


def pointers(count: int) -> ctypes.Array:
    """A null-filled `TF_Tensor*` array."""
    return (c_api.pointer * count)()
