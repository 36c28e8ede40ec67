"""TensorFlow's C API, from the shared library inside the installed wheel.

No `import tensorflow`: the library alone starts in a second and takes half the memory. Calls that
may take long (`load`, `run`, `close`) go through `BLOCKING`, which releases Python's GIL; the
many tiny ones go through `QUICK`, which keeps it: giving the GIL away costs more than they do.
"""

import ctypes
import importlib.util
import os
import pathlib

from serving import errors

pointer = ctypes.c_void_p
size_t = ctypes.c_size_t


class Output(ctypes.Structure):
    """TF_Output: one output of an operation."""

    _fields_ = (("operation", pointer), ("index", ctypes.c_int))


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = (("data", pointer), ("length", size_t), ("deallocator", pointer))


STRING_SIZE = 24
"""sizeof(TF_TString), tensorflow/core/platform/ctstring_internal.h."""

_outputs = ctypes.POINTER(Output)
_tensors = ctypes.POINTER(pointer)
_QUICK = {
    "TF_NewStatus": (pointer, []),
    "TF_DeleteStatus": (None, [pointer]),
    "TF_GetCode": (ctypes.c_int, [pointer]),
    "TF_Message": (ctypes.c_char_p, [pointer]),
    "TF_NewGraph": (pointer, []),
    "TF_NewSessionOptions": (pointer, []),
    "TF_DeleteSessionOptions": (None, [pointer]),
    "TF_SetConfig": (None, [pointer, ctypes.c_char_p, size_t, pointer]),
    "TF_NewBuffer": (ctypes.POINTER(Buffer), []),
    "TF_DeleteBuffer": (None, [ctypes.POINTER(Buffer)]),
    "TF_GraphOperationByName": (pointer, [pointer, ctypes.c_char_p]),
    "TF_OperationNumOutputs": (ctypes.c_int, [pointer]),
    "TF_AllocateTensor": (
        pointer,
        [ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_int, size_t],
    ),
    "TF_DeleteTensor": (None, [pointer]),
    "TF_TensorData": (pointer, [pointer]),
    "TF_TensorByteSize": (size_t, [pointer]),
    "TF_TensorType": (ctypes.c_int, [pointer]),
    "TF_NumDims": (ctypes.c_int, [pointer]),
    "TF_Dim": (ctypes.c_int64, [pointer, ctypes.c_int]),
    "TF_StringInit": (None, [pointer]),
    "TF_StringCopy": (None, [pointer, ctypes.c_char_p, size_t]),
    "TF_StringGetDataPointer": (pointer, [pointer]),
    "TF_StringGetSize": (size_t, [pointer]),
}
_BLOCKING = {
    "TF_LoadSessionFromSavedModel": (
        pointer,
        [
            pointer,
            pointer,
            ctypes.c_char_p,
            ctypes.POINTER(ctypes.c_char_p),
            ctypes.c_int,
            pointer,
            ctypes.POINTER(Buffer),
            pointer,
        ],
    ),
    "TF_SessionRun": (
        None,
        [
            pointer,
            pointer,
            _outputs,
            _tensors,
            ctypes.c_int,
            _outputs,
            _tensors,
            ctypes.c_int,
            pointer,
            ctypes.c_int,
            pointer,
            pointer,
        ],
    ),
    "TF_CloseSession": (None, [pointer, pointer]),
    "TF_DeleteSession": (None, [pointer, pointer]),
    "TF_DeleteGraph": (None, [pointer]),
}


def _library_path() -> str:
    spec = importlib.util.find_spec("tensorflow")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = pathlib.Path(folder) / "libtensorflow_cc.so.2"
        if path.exists():
            return str(path)
    raise ImportError(
        "serving.server needs libtensorflow_cc.so.2 of the installed tensorflow wheel:"
        " pip install -r requirements.txt (the client alone needs no TensorFlow)"
    )


def _bind(library: ctypes.CDLL, signatures: dict) -> ctypes.CDLL:
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


# With TensorFlow 2.16's oneDNN kernels, concurrent requests of one row corrupt the heap and end the
# process within seconds ("free(): invalid next size"), in plain TensorFlow as here; seen with our
# own exported models, and like tensorflow#117700. TensorFlow reads this once, when it is loaded.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

BLOCKING = _bind(ctypes.CDLL(_library_path()), _BLOCKING)
QUICK = _bind(ctypes.PyDLL(_library_path()), _QUICK)


class Status:
    """A TF_Status for the calls of one `with` block.

    Raises:
      errors.ServingError: `check` found that the call before it failed.
    """

    def __enter__(self) -> "Status":
        self.pointer = QUICK.TF_NewStatus()
        return self

    def __exit__(self, *_: object) -> None:
        QUICK.TF_DeleteStatus(self.pointer)

    def check(self) -> None:
        code = QUICK.TF_GetCode(self.pointer)
        if code:
            text = QUICK.TF_Message(self.pointer).decode("utf-8", "replace")
            raise errors.ServingError(errors.CODES[code], text)
