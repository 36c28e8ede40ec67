"""PredictionService.MultiInference: several signatures on one input (multi_inference.cc)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import grpc
from google.protobuf import message

from serving import errors, protos
from serving.server import classify, regress
from serving.server.predict import DEFAULT_SIGNATURE

if TYPE_CHECKING:
    from serving.server.models import Models
    from serving.server.servable import Servable


def multi_inference(
    models: Models, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """Answers a MultiInferenceRequest with one result a task, all by the same version.

    The first task's ModelSpec chooses the version, as in TF Serving.

    Args:
      deadline: a `time.monotonic()` moment after which nobody waits for the answer.

    Raises:
      errors.ServingError: NOT_FOUND model or version; INVALID_ARGUMENT tasks of several models,
        unknown or repeated signatures, or empty input; UNIMPLEMENTED a method other than classify
        and regress; or what the model itself raised.
    """
    spec = request.tasks[0].model_spec if request.tasks else protos.ModelSpec()
    with models.use(spec) as used:
        response = run(used.servable, request, deadline)
    for result in response.results:
        result.model_spec.version.value = used.version
    return response


def run(
    servable: Servable, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """The MultiInferenceResponse of one version, without its number."""
    names = _signature_names(servable, request)
    response = protos.MultiInferenceResponse()
    for name, task in zip(names, request.tasks, strict=True):
        result = response.results.add()
        result.model_spec.name = task.model_spec.name
        result.model_spec.signature_name = name
        if task.method_name == classify.METHOD:
            classified = classify.infer(servable, name, request.input, deadline)
            result.classification_result.CopyFrom(classified)
        else:
            regressed = regress.infer(servable, name, request.input, deadline)
            result.regression_result.CopyFrom(regressed)
    return response


def _signature_names(servable: Servable, request: message.Message) -> list[str]:
    """Each task's signature, after checking what can be before anything runs."""
    names: list[str] = []
    for task in request.tasks:
        if not task.model_spec.name:
            raise errors.invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise errors.invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in names:
            raise errors.invalid(f"Duplicate evaluation of signature: {name}")
        if name not in servable.signatures:
            raise errors.invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in (classify.METHOD, regress.METHOD):
            raise errors.ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
        names.append(name)
    return names
