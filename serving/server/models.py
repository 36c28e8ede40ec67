"""What a server serves: its models by name, and the version that a ModelSpec asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grpc
from google.protobuf import message

from serving import errors
from serving.server.model import Model
from serving.server.servable import Servable


def invalid(text: str) -> errors.ServingError:
    """The request is wrong, whatever is served."""
    return errors.ServingError(grpc.StatusCode.INVALID_ARGUMENT, text)


class Used(NamedTuple):
    """A version held loaded."""

    name: str
    version: int
    servable: Servable


class Models:
    """Thread-safe; `poll` is called by one thread."""

    def __init__(self, models: Sequence[Model]):
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def find(self, spec: message.Message) -> Model | None:
        """The model a ModelSpec names; None if there is no such model."""
        return self._models.get(spec.name)

    @contextlib.contextmanager
    def use(self, spec: message.Message) -> Iterator[Used]:
        """Holds the version a ModelSpec asks for loaded for the block.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, it names no model, or an unknown label; NOT_FOUND,
            there is no such model, or no such version is available.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        number = self.version_number(spec)
        model = self.find(spec)
        if model is None:
            wanted = f"Latest({spec.name})"
            if number is not None:
                wanted = f"Specific({spec.name}, {number})"
            raise errors.ServingError(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}"
            )
        with model.use(number) as (version, servable):
            yield Used(model.name, version, servable)

    def version_number(self, spec: message.Message) -> int | None:
        """The version a ModelSpec asks for; None for the latest.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, it asks by a label nobody assigned.
        """
        choice = spec.WhichOneof("version_choice")
        if choice == "version_label":
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        return spec.version.value if choice == "version" else None
