"""A typed client of any server that speaks TF Serving's gRPC API."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from google.protobuf import message

from serving import errors, protos, tensors

_OPTIONS = (
    ("grpc.max_receive_message_length", tensors.MAX_BYTES),
    ("grpc.max_send_message_length", tensors.MAX_BYTES),
)
_PREDICTION = "/tensorflow.serving.PredictionService"
_MODEL = "/tensorflow.serving.ModelService"
DEFAULT_SIGNATURE = "serving_default"


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """dtype (`string`, `float32`, …) and shape; None where any size goes, or for any rank."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    version: int
    state: str
    """START, LOADING, AVAILABLE, UNLOADING or END."""
    error: str
    """Why loading failed; '' if it didn't."""


class Client:
    """Asks one server. One connection, reused; thread-safe.

    Every method raises `errors.ServingError` with the server's code and message; UNAVAILABLE
    means that no server answers at `target`.
    """

    def __init__(self, target: str):
        """
        Args:
          target: `host:port`.
        """
        self._target = target
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._predict = self._method(_PREDICTION, "Predict", protos.PredictResponse)
        self._metadata = self._method(
            _PREDICTION, "GetModelMetadata", protos.GetModelMetadataResponse
        )
        self._status = self._method(_MODEL, "GetModelStatus", protos.GetModelStatusResponse)
        self._signatures: dict[tuple[str, int | None], dict[str, Signature]] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def predict(
        self,
        model: str,
        inputs: Mapping[str, object],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> dict[str, np.ndarray]:
        """Runs a signature. Names, dtypes and shapes are checked before anything is sent.

        Args:
          inputs: input name -> array or nested list. Numbers are cast where their kind allows
            (int to float, float64 to float32), never float to int; strings are `bytes` or `str`.
          version: the newest unless given.
          outputs: only these outputs; all unless given.
          timeout: seconds for the whole call.

        Returns:
          Output name -> array; strings as `bytes` objects.

        Raises:
          errors.ServingError: INVALID_ARGUMENT (also when checked here), NOT_FOUND,
            FAILED_PRECONDITION (no such signature), UNAVAILABLE, DEADLINE_EXCEEDED, ….
        """
        arrays = self._typed_inputs(model, version, signature, inputs, timeout)
        request = protos.PredictRequest()
        request.model_spec.signature_name = signature
        for name, array in arrays.items():
            tensors.to_proto(array, request.inputs[name])
        request.output_filter.extend(outputs)
        response = self._call(self._predict, request, model, version, timeout)
        return {name: tensors.to_array(proto) for name, proto in response.outputs.items()}

    def metadata(
        self, model: str, *, version: int | None = None, timeout: float = 10.0
    ) -> dict[str, Signature]:
        """The model's signatures by name."""
        request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
        response = self._call(self._metadata, request, model, version, timeout)
        definitions = protos.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return {
            name: Signature(_specs(definition.inputs), _specs(definition.outputs))
            for name, definition in definitions.signature_def.items()
            if not name.startswith("__")  # TensorFlow's own, such as __saved_model_init_op
        }

    def status(
        self, model: str, *, version: int | None = None, timeout: float = 10.0
    ) -> list[VersionStatus]:
        """The state of one version, or of all the server knows, newest first."""
        request = protos.GetModelStatusRequest()
        response = self._call(self._status, request, model, version, timeout)
        states = protos.ModelVersionStatus.State
        return [
            VersionStatus(s.version, states.Name(s.state), s.status.error_message)
            for s in response.model_version_status
        ]

    def _method(
        self, service: str, name: str, response: type[message.Message]
    ) -> grpc.UnaryUnaryMultiCallable:
        return self._channel.unary_unary(
            f"{service}/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable,
        request: message.Message,
        model: str,
        version: int | None,
        timeout: float,
    ) -> message.Message:
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _clear(error, self._target, timeout) from None

    def _typed_inputs(
        self,
        model: str,
        version: int | None,
        signature: str,
        inputs: Mapping[str, object],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        key = (model, version)
        cached = key in self._signatures
        if not cached:
            self._signatures[key] = self.metadata(model, version=version, timeout=timeout)
        try:
            return _typed(self._signatures[key], model, signature, inputs)
        except errors.ServingError:
            if not cached:
                raise
        # The server may have a newer version by now, with other signatures.
        self._signatures[key] = self.metadata(model, version=version, timeout=timeout)
        return _typed(self._signatures[key], model, signature, inputs)


def _specs(infos: Mapping[str, message.Message]) -> dict[str, TensorSpec]:
    return {name: _spec(info) for name, info in sorted(infos.items())}


def _spec(info: message.Message) -> TensorSpec:
    dtype = tensors.dtype_name(info.dtype)
    if info.tensor_shape.unknown_rank:
        return TensorSpec(dtype, None)
    return TensorSpec(dtype, tuple(d.size if d.size >= 0 else None for d in info.tensor_shape.dim))


def _invalid(text: str) -> errors.ServingError:
    return errors.ServingError(grpc.StatusCode.INVALID_ARGUMENT, text)


def _typed(
    signatures: Mapping[str, Signature], model: str, name: str, inputs: Mapping[str, object]
) -> dict[str, np.ndarray]:
    """The inputs as arrays of the signature's dtypes; raises if they don't fit it."""
    if name not in signatures:
        raise errors.ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"model {model!r} has no signature {name!r}; it has: {', '.join(sorted(signatures))}",
        )
    expected = signatures[name].inputs
    if set(inputs) != set(expected):
        takes = ", ".join(f"{key} ({spec.dtype})" for key, spec in expected.items())
        got = ", ".join(sorted(inputs)) or "none"
        raise _invalid(f"signature {name!r} takes the inputs {takes}; got {got}")
    return {key: _cast(key, value, expected[key]) for key, value in inputs.items()}


def _cast(name: str, value: object, spec: TensorSpec) -> np.ndarray:
    array = _array(name, value)
    text = array.dtype.kind in "OSU"
    if text != (spec.dtype == "string"):
        raise _invalid(f"input {name!r} is {spec.dtype}, got {'text' if text else array.dtype}")
    if not text:
        if array.size and not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise _invalid(f"input {name!r} is {spec.dtype}, got {array.dtype}")
        cast = array.astype(spec.dtype, copy=False)
        if cast.dtype.kind in "iu" and not np.array_equal(cast, array):
            raise _invalid(f"input {name!r}: a value doesn't fit {spec.dtype}")
        array = cast
    fits = spec.shape is None or (
        len(spec.shape) == array.ndim
        and all(want in (None, size) for want, size in zip(spec.shape, array.shape, strict=True))
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in spec.shape or ())
        raise _invalid(f"input {name!r} has shape [{wanted}], got {list(array.shape)}")
    return array


def _array(name: str, value: object) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SU":
            # NumPy's own fixed-width strings lose trailing zero bytes.
            array = np.asarray(value, object)
        return array
    except ValueError:
        raise _invalid(f"input {name!r}: its rows have different lengths") from None


def _clear(error: grpc.RpcError, target: str, timeout: float) -> errors.ServingError:
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        details = (
            f"no model server answers at {target} ({details}). Is it running? Start one with:"
            " python -m serving.server --model_base_path=DIR"
        )
    elif code == grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"{target} didn't answer within {timeout:g} s"
    return errors.ServingError(code, details)
