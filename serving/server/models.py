"""What a server serves: its models by name, and the version that a ModelSpec asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from google.protobuf import message

from serving.errors import ServingError, invalid
from serving.server.model import Model, not_found
from serving.server.servable import Servable


class Used(NamedTuple):
    """A version held loaded."""

    name: str
    version: int
    servable: Servable


class Models:
    """The models of the current configuration. Thread-safe."""

    def __init__(self, models: Iterable[Model] = ()):
        self._models: dict[str, Model] = {}
        self._known: dict[str, Model] = {}
        self.replace(models)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(model.is_available() for model in self)

    def replace(self, models: Iterable[Model]) -> None:
        """Serves these models from now on, all of them from the same moment."""
        self._models = {model.name: model for model in models}
        self._known = {**self._known, **self._models}

    def find(self, spec: message.Message) -> Model | None:
        """The model a ModelSpec names, maybe one no longer served; None if never heard of."""
        return self._known.get(spec.name)

    @contextlib.contextmanager
    def use(self, spec: message.Message) -> Iterator[Used]:
        """Holds the version a ModelSpec asks for loaded for the block.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, it names no model, or an unknown label; NOT_FOUND,
            there is no such model, or no such version is available.
        """
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        with contextlib.ExitStack() as held:
            while True:
                model, number = self._resolve(spec)
                try:
                    version, servable = held.enter_context(model.use(number))
                    break
                except ServingError:
                    # A reload in between may have unloaded what the name or the label meant.
                    if self._resolve(spec) == (model, number):
                        raise
            yield Used(model.name, version, servable)

    def _resolve(self, spec: message.Message) -> tuple[Model, int | None]:
        """The model and the version a ModelSpec means now."""
        model = self._models.get(spec.name)
        number = _version_number(spec, model)
        if model is None:
            raise not_found(spec.name, number)
        return model, number

    def version_number(self, spec: message.Message) -> int | None:
        """The version a ModelSpec asks for; None for the latest.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, it asks by a label nobody assigned.
        """
        return _version_number(spec, self._models.get(spec.name))


def _version_number(spec: message.Message, model: Model | None) -> int | None:
    choice = spec.WhichOneof("version_choice")
    if choice == "version_label":
        number = model.labels.get(spec.version_label) if model else None
        if number is None:
            raise invalid(f"Unrecognized servable version label: {spec.version_label}")
        return number
    return spec.version.value if choice == "version" else None
