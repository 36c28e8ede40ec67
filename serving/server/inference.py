"""What Classify and Regress share: a request of examples to one signature, its result and model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf import message

from serving import errors
from serving.server.predict import DEFAULT_SIGNATURE

if TYPE_CHECKING:
    from serving.server.models import Models
    from serving.server.servable import Servable

    Infer = Callable[[Servable, str, message.Message, float], message.Message]
    """The result of an `Input` under a named signature, until a deadline."""


def answer(
    models: Models,
    request: message.Message,
    response: message.Message,
    infer: Infer,
    deadline: float = math.inf,
) -> message.Message:
    """Fills `response`, an empty one of the request's kind, and returns it.

    Args:
      deadline: a `time.monotonic()` moment after which nobody waits for the answer.

    Raises:
      errors.ServingError: as `Models.use`, `run` and `infer`.
    """
    if not request.HasField("model_spec"):
        raise errors.invalid("Missing ModelSpec")
    with models.use(request.model_spec) as used:
        response.result.CopyFrom(run(used.servable, request, infer, deadline))
    response.model_spec.name = used.name
    response.model_spec.version.value = used.version
    response.model_spec.signature_name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    return response


def run(
    servable: Servable, request: message.Message, infer: Infer, deadline: float = math.inf
) -> message.Message:
    """The result on one version.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, it has no such signature; or as `infer`.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise errors.invalid(f"No signature was found with the name: {name}")
    return infer(servable, name, request.input, deadline)
