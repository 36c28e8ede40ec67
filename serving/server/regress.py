"""PredictionService.Regress, with TF Serving's checks, codes and messages (regressor.cc)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from google.protobuf import message

from serving import errors, protos
from serving.server import example_input, inference

if TYPE_CHECKING:
    from serving.server.models import Models
    from serving.server.servable import Servable

METHOD = "tensorflow/serving/regress"
_INPUT = "inputs"
_OUTPUT = "outputs"


def regress(
    models: Models, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """Answers a RegressionRequest with one value an example.

    Args:
      deadline: a `time.monotonic()` moment after which nobody waits for the answer.

    Raises:
      errors.ServingError: NOT_FOUND model or version; INVALID_ARGUMENT unknown signature, one
        that isn't a regression, or empty input; or what the model itself raised.
    """
    return inference.answer(models, request, protos.RegressionResponse(), infer, deadline)


def run(
    servable: Servable, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """The RegressionResult of a RegressionRequest on one version."""
    return inference.run(servable, request, infer, deadline)


def infer(servable: Servable, name: str, sent: message.Message, deadline: float) -> message.Message:
    """The RegressionResult of an `Input` under the signature `name`."""
    _check_signature(
        servable.signatures[name], check_method=servable.options.signature_method_name_check
    )
    examples = example_input.serialized_examples(sent)
    output = servable.run(name, {_INPUT: examples}, deadline=deadline)[_OUTPUT]
    _check_output(output, len(examples))
    result = protos.RegressionResult()
    for value in output.ravel().tolist():
        result.regressions.add().value = value
    return result


def _check_signature(signature: message.Message, *, check_method: bool) -> None:
    if check_method and signature.method_name != METHOD:
        raise errors.invalid(
            f"Expected regression signature method_name to be {METHOD}."
            f" Was: {signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise errors.invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise errors.invalid("Expected one output Tensor.")
    for name, kind, there in (
        (_INPUT, "inputs", signature.inputs),
        (_OUTPUT, "outputs", signature.outputs),
    ):
        if name not in there:
            raise errors.failed_precondition(
                f"No regression {kind} found in SignatureDef: {sorted(there)}"
            )


def _check_output(output: np.ndarray, count: int) -> None:
    if output.ndim != 1 and output.shape[1:] != (1,):
        raise errors.invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1]"
            f" but got {list(output.shape)}"
        )
    if len(output) != count:
        raise errors.invalid(
            f"Input batch size did not match output batch size: {count} vs. {len(output)}"
        )
    if output.dtype != np.float32:
        raise errors.invalid(f"Expected output Tensor of DT_FLOAT.  Got: {output.dtype}")
