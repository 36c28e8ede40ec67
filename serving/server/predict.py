"""PredictionService.Predict, with TF Serving's checks, codes and messages (predict_util.cc)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc
import numpy as np
from google.protobuf import message

from serving import errors, protos, tensors
from serving.errors import invalid

if TYPE_CHECKING:
    from serving.server.models import Models
    from serving.server.servable import Servable

DEFAULT_SIGNATURE = "serving_default"
METHODS = tuple(f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


def predict(
    models: Models, request: message.Message, deadline: float = math.inf, *, content: bool = False
) -> message.Message:
    """Runs the signature a request names on its inputs.

    Args:
      request: a PredictRequest.
      deadline: a `time.monotonic()` moment after which nobody waits for the answer.
      content: answer with `tensor_content` instead of typed fields.

    Returns:
      A PredictResponse.

    Raises:
      errors.ServingError: NOT_FOUND model or version, FAILED_PRECONDITION unknown signature,
        INVALID_ARGUMENT inputs or outputs, or what the model itself raised.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    with models.use(request.model_spec) as used:
        outputs = run(used.servable, request, deadline)
    response = protos.PredictResponse()
    response.model_spec.name = used.name
    response.model_spec.version.value = used.version
    response.model_spec.signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    for alias, array in outputs.items():
        tensors.to_proto(array, response.outputs[alias], content=content)
    return response


def run(
    servable: Servable, request: message.Message, deadline: float = math.inf
) -> dict[str, np.ndarray]:
    """The outputs of a PredictRequest on one version."""
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise errors.failed_precondition(f'Serving signature key "{name}" not found.')
    signature = servable.signatures[name]
    if servable.options.signature_method_name_check:
        _check_method_name(signature.method_name)
    inputs = _read_inputs(request, signature)
    wanted = _wanted_outputs(request, signature)
    return servable.run(name, inputs, wanted, deadline)


def _check_method_name(method: str) -> None:
    if method not in METHODS:
        raise errors.ServingError(
            grpc.StatusCode.INTERNAL,
            "Expected prediction signature method_name to be one of"
            f" {{{', '.join(METHODS)}}}. Was: {method}",
        )


def _read_inputs(request: message.Message, signature: message.Message) -> dict[str, np.ndarray]:
    sent, expected = set(request.inputs), set(signature.inputs)
    if len(sent) != len(expected):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(expected)}"
            f" len({_set(sent)}) != len({_set(expected)})."
            f" Sent extra: {_set(sent - expected)}."
            f" Missing but required: {_set(expected - sent)}."
        )
    arrays = {}
    for alias, proto in request.inputs.items():
        if alias not in expected:
            raise invalid(
                f"input tensor alias not found in signature: {alias}."
                f" Inputs expected to be in the set {_set(expected)}."
            )
        wanted = signature.inputs[alias].dtype
        if proto.dtype != wanted:
            raise invalid(
                f"input {alias}: expected {tensors.dtype_name(wanted)},"
                f" got {tensors.dtype_name(proto.dtype)}"
            )
        try:
            arrays[alias] = tensors.to_array(proto)
        except tensors.TensorError as error:
            raise invalid(f"tensor parsing error: {alias}: {error}") from None
    return arrays


def _wanted_outputs(request: message.Message, signature: message.Message) -> list[str]:
    seen: set[str] = set()
    for alias in request.output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias}"
                f" Outputs expected to be in the set {_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return list(request.output_filter) or sorted(signature.outputs)


def _set(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
