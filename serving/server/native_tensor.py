"""NumPy arrays into TensorFlow's own tensors and back, one copy each way."""

import ctypes
import math

import grpc
import numpy as np

from serving import errors, tensors
from serving.server import c_api
from serving.server.c_api import QUICK, STRING_SIZE


def from_array(array: np.ndarray) -> int:
    """A new TF_Tensor with the array's values; `QUICK.TF_DeleteTensor` frees it.

    Args:
      array: of a dtype in `tensors.DTYPES`, or `bytes` objects.
    """
    dims = (ctypes.c_int64 * array.ndim)(*array.shape)
    if array.dtype == object:
        return _from_strings(array, dims)
    array = np.asarray(array, order="C")
    number = tensors.NUMBERS[array.dtype]
    tensor = QUICK.TF_AllocateTensor(number, dims, array.ndim, array.nbytes)
    if array.nbytes:
        ctypes.memmove(QUICK.TF_TensorData(tensor), array.ctypes.data, array.nbytes)
    return tensor


def _from_strings(array: np.ndarray, dims: ctypes.Array) -> int:
    num_bytes = STRING_SIZE * array.size
    tensor = QUICK.TF_AllocateTensor(tensors.STRING, dims, array.ndim, num_bytes)
    address = QUICK.TF_TensorData(tensor)
    for value in array.ravel().tolist():
        QUICK.TF_StringInit(address)
        QUICK.TF_StringCopy(address, value, len(value))
        address += STRING_SIZE
    return tensor


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
