"""What a model's signatures take, and inputs checked and cast to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grpc
import numpy as np
from google.protobuf import message

from serving import errors, protos, tensors
from serving.errors import invalid


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """dtype (`string`, `float32`, …) and shape; None where any size goes, or for any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


def read_signatures(response: message.Message) -> dict[str, Signature]:
    """The signatures in a GetModelMetadataResponse, by name."""
    definitions = protos.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    return {
        name: Signature(_specs(definition.inputs), _specs(definition.outputs))
        for name, definition in definitions.signature_def.items()
        if not name.startswith("__")  # TensorFlow's own, such as __saved_model_init_op
    }


def typed_inputs(
    signatures: Mapping[str, Signature], model: str, name: str, inputs: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """The inputs as arrays of the signature's dtypes.

    Raises:
      errors.ServingError: FAILED_PRECONDITION, no such signature; INVALID_ARGUMENT, inputs that
        don't fit it.
    """
    if name not in signatures:
        raise errors.ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"model {model!r} has no signature {name!r}; it has: {', '.join(sorted(signatures))}",
        )
    expected = signatures[name].inputs
    if set(inputs) != set(expected):
        takes = ", ".join(f"{key} ({spec.dtype})" for key, spec in expected.items())
        got = ", ".join(sorted(inputs)) or "none"
        raise invalid(f"signature {name!r} takes the inputs {takes}; got {got}")
    return {key: _cast(key, value, expected[key]) for key, value in inputs.items()}


def _specs(infos: Mapping[str, message.Message]) -> dict[str, TensorSpec]:
    return {name: _spec(info) for name, info in sorted(infos.items())}


def _spec(info: message.Message) -> TensorSpec:
    dtype = tensors.dtype_name(info.dtype)
    if info.tensor_shape.unknown_rank:
        return TensorSpec(dtype, None)
    return TensorSpec(dtype, tuple(d.size if d.size >= 0 else None for d in info.tensor_shape.dim))


def _cast(name: str, value: object, spec: TensorSpec) -> np.ndarray:
    array = _array(name, value)
    text = array.dtype.kind in "OSU"
    if text != (spec.dtype == "string"):
        raise invalid(f"input {name!r} is {spec.dtype}, got {'text' if text else array.dtype}")
    if text:
        wrong = next((v for v in array.ravel().tolist() if not isinstance(v, bytes | str)), None)
        if wrong is not None:
            hint = "; score() takes users as dictionaries" if isinstance(wrong, dict) else ""
            raise invalid(f"input {name!r} is string, got a {type(wrong).__name__}{hint}")
    else:
        if array.size and not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise invalid(f"input {name!r} is {spec.dtype}, got {array.dtype}")
        cast = array.astype(spec.dtype, copy=False)
        if cast.dtype.kind in "iu" and not np.array_equal(cast, array):
            raise invalid(f"input {name!r}: a value doesn't fit {spec.dtype}")
        array = cast
    fits = spec.shape is None or (
        len(spec.shape) == array.ndim
        and all(want in (None, size) for want, size in zip(spec.shape, array.shape, strict=True))
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in spec.shape or ())
        raise invalid(f"input {name!r} has shape [{wanted}], got {list(array.shape)}")
    return array


def _array(name: str, value: object) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SU":
            # NumPy's own fixed-width strings lose trailing zero bytes.
            array = np.asarray(value, object)
        return array
    except ValueError:
        raise invalid(f"input {name!r}: its rows have different lengths") from None
