"""What every request has in common: a ModelSpec that names a model and maybe a version."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf import message

from serving import errors
from serving.server import model

Models = Mapping[str, model.Model]
"""Name -> model."""


def invalid(text: str) -> errors.ServingError:
    return errors.ServingError(grpc.StatusCode.INVALID_ARGUMENT, text)


def find_model(models: Models, request: message.Message) -> model.Model:
    """The model a request's `model_spec` names.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, it names none; NOT_FOUND, there is no such model.
    """
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    name = request.model_spec.name
    if not name:
        raise invalid("ModelSpec has no name specified.")
    if name not in models:
        number = version_number(request)
        wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
        raise errors.ServingError(
            grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}"
        )
    return models[name]


def version_number(request: message.Message) -> int | None:
    """The version a request asks for; None for the latest.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, it asks by a label nobody assigned.
    """
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    if choice == "version_label":
        raise invalid(f"Unrecognized servable version label: {spec.version_label}")
    return spec.version.value if choice == "version" else None
