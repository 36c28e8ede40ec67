"""PredictionService.Classify, with TF Serving's checks, codes and messages (classifier.cc)."""

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

METHOD = "tensorflow/serving/classify"
_INPUT = "inputs"
_CLASSES = "classes"
_SCORES = "scores"
_DTYPES = {_CLASSES: (np.dtype(object), "DT_STRING"), _SCORES: (np.dtype(np.float32), "DT_FLOAT")}


def classify(
    models: Models, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """Answers a ClassificationRequest with every example's classes, scores or both.

    Args:
      deadline: a `time.monotonic()` moment after which nobody waits for the answer.

    Raises:
      errors.ServingError: NOT_FOUND model or version; INVALID_ARGUMENT unknown signature, one
        that doesn't classify, or empty input; or what the model itself raised.
    """
    return inference.answer(models, request, protos.ClassificationResponse(), infer, deadline)


def run(
    servable: Servable, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """The ClassificationResult of a ClassificationRequest on one version."""
    return inference.run(servable, request, infer, deadline)


def infer(servable: Servable, name: str, sent: message.Message, deadline: float) -> message.Message:
    """The ClassificationResult of an `Input` under the signature `name`."""
    signature = servable.signatures[name]
    _check_signature(signature, check_method=servable.options.signature_method_name_check)
    examples = example_input.serialized_examples(sent)
    wanted = [output for output in (_CLASSES, _SCORES) if output in signature.outputs]
    outputs = servable.run(name, {_INPUT: examples}, wanted, deadline)
    _check_outputs(outputs, len(examples))
    result = protos.ClassificationResult()
    for columns in zip(*(array.tolist() for array in outputs.values()), strict=True):
        made = result.classifications.add().classes
        for values in zip(*columns, strict=True):
            one = dict(zip(wanted, values, strict=True))
            made.add(
                label=one.get(_CLASSES, b"").decode("utf-8", "replace"), score=one.get(_SCORES)
            )
    return result


def _check_signature(signature: message.Message, *, check_method: bool) -> None:
    if check_method and signature.method_name != METHOD:
        raise errors.invalid(
            f"Expected classification signature method_name to be {METHOD}."
            f" Was: {signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise errors.invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise errors.invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if _INPUT not in signature.inputs:
        raise errors.failed_precondition(
            f"No classification inputs found in SignatureDef: {sorted(signature.inputs)}"
        )
    if _CLASSES not in signature.outputs and _SCORES not in signature.outputs:
        raise errors.failed_precondition(
            "Expected classification signature outputs to contain at least one of"
            f' "{_CLASSES}" or "{_SCORES}". Outputs were: {sorted(signature.outputs)}'
        )


def _check_outputs(outputs: dict[str, np.ndarray], count: int) -> None:
    """Each output is [count, classes] of its dtype."""
    for name, array in outputs.items():
        if array.ndim != 2:
            raise errors.invalid(
                f"Expected Tensor shape: [batch_size num_classes] but got {list(array.shape)}"
            )
        dtype, dtype_name = _DTYPES[name]
        if array.dtype != dtype:
            raise errors.invalid(f"Expected {name} Tensor of {dtype_name}. Got: {array.dtype}")
        if len(array) != count:
            raise errors.invalid(f"Expected {name} output batch size of {count}. Got: {len(array)}")
    widths = [array.shape[1] for array in outputs.values()]
    if len(set(widths)) > 1:
        raise errors.invalid(
            f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[1]}"
        )
