"""Keeps what is served in line with the configuration and the directories, off the requests' path.

What TF Serving's ServerCore and AspiredVersionsManager do (server_core.cc).
"""

from __future__ import annotations

import logging
import pathlib
import threading
from collections.abc import Callable, Iterable
from concurrent import futures

import grpc
from google.protobuf import message

from serving import errors, protos
from serving.rpc import config_file
from serving.server import config as configs
from serving.server.model import Model, Retries
from serving.server.models import Models
from serving.server.servable import Options


class Manager:
    """Loads, reloads and unloads models. Thread-safe.

    Attributes:
      models: what is served.
      on_change: called after each look at a model and after each reload.
    """

    def __init__(
        self,
        options: Options,
        retries: Retries,
        *,
        load_threads: int = 1,
        allow_unavailable_labels: bool = False,
    ):
        """
        Args:
          options: how versions are loaded and run.
          retries: of loads that fail.
          load_threads: models loaded at once.
          allow_unavailable_labels: a label not yet in use may go to a version not yet available.
        """
        self.models = Models()
        self.on_change: Callable[[], None] = lambda: None
        self._options = options
        self._retries = retries
        self._allow_unavailable_labels = allow_unavailable_labels
        self._loaders = futures.ThreadPoolExecutor(max(load_threads, 1), "load")
        self._looks: dict[Model, futures.Future] = {}
        self._reloading = threading.Lock()
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def start(self, config: message.Message) -> None:
        """Takes over the first ModelServerConfig; loading waits for `poll`.

        Labels are taken as they stand, as no version is available yet.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, it can't be served.
        """
        configs.check_models(config, self.models)
        self.models.replace(map(self._create, config.model_config_list.config))

    def reload(self, config: message.Message) -> None:
        """Serves another ModelServerConfig: all of it, or on an error none of it.

        Models that are new, or whose base path is, are loaded before anything changes; requests
        go on being answered meanwhile. Models no longer named are unloaded.

        Raises:
          errors.ServingError: INVALID_ARGUMENT, it can't be served; UNKNOWN, a new model has no
            version that loads; FAILED_PRECONDITION, a label names a version not available.
        """
        configs.check_models(config, self.models)
        with self._reloading:
            entries = list(config.model_config_list.config)
            served = {(model.name, model.base_path): model for model in self.models}
            models = [
                served.get((entry.name, pathlib.Path(entry.base_path))) or self._create(entry)
                for entry in entries
            ]
            fresh = [model for model in models if model not in served.values()]
            try:
                self._load(fresh)
                for model, entry in zip(models, entries, strict=True):
                    self._check_labels(model, entry)
            except errors.ServingError:
                self._retire(fresh)
                raise
            for model, entry in zip(models, entries, strict=True):
                model.configure(entry)
            self.models.replace(models)
            self._retire(model for model in served.values() if model not in models)
        logging.info("reloaded: serving %s", ", ".join(model.name for model in models) or "nothing")
        self.on_change()
        self._wake.set()

    def poll(self) -> None:
        """Has every model looked at on the loading threads, unless it still is."""
        looks = {model: self._looks.get(model) for model in self.models}
        self._looks = {
            model: self._loaders.submit(self._look, model) if look is None or look.done() else look
            for model, look in looks.items()
        }

    def watch(self, interval: float) -> None:
        """Polls from now on, in a thread of its own.

        Args:
          interval: seconds between polls; at 0 only now and after each reload.
        """

        def watch() -> None:
            while not self._stopped.is_set():
                self._wake.clear()
                self.poll()
                self._wake.wait(interval or None)

        threading.Thread(target=watch, name="watch", daemon=True).start()

    def watch_config_file(self, path: str, applied: message.Message, interval: float) -> None:
        """Reloads a ModelServerConfig file whenever it changes, in a thread of its own.

        A file that can't be used is one error in the log, and what is served stays.

        Args:
          applied: what it said when the server started.
          interval: seconds between looks at the file.
        """

        def watch(applied: message.Message) -> None:
            complaint = ""
            while not self._stopped.wait(interval):
                try:
                    config = config_file.read(path, protos.ModelServerConfig)
                    if config != applied:
                        self.reload(config)
                        applied = config
                    complaint = ""
                except (config_file.ConfigError, errors.ServingError) as error:
                    if str(error) != complaint:
                        complaint = str(error)
                        logging.error("--model_config_file isn't reloaded: %s", complaint)

        threading.Thread(target=watch, args=(applied,), name="watch-config", daemon=True).start()

    def stop(self) -> None:
        """Looks at nothing any more; what is loaded stays."""
        self._stopped.set()
        self._wake.set()

    def _create(self, entry: message.Message) -> Model:
        return Model(entry, self._options, self._retries)

    def _look(self, model: Model) -> None:
        try:
            model.poll()
        except Exception:  # Nothing waits for the future: without this the error would be lost.
            logging.exception("looking at %s failed", model.name)
        self.on_change()

    def _load(self, models: Iterable[Model]) -> None:
        models = list(models)
        futures.wait([self._loaders.submit(self._look, model) for model in models])
        missing = [model for model in models if not model.is_available()]
        if missing:
            raise errors.ServingError(
                grpc.StatusCode.UNKNOWN,
                f"{len(missing)} model(s) did not become available:"
                f" {{{', '.join(map(_why_unavailable, missing))}}}",
            )

    def _check_labels(self, model: Model, entry: message.Message) -> None:
        for label, number in entry.version_labels.items():
            unused = model.labels.get(label, number) == number
            if model.is_available(number) or (self._allow_unavailable_labels and unused):
                continue
            raise errors.ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"Request to assign label to version {number} of model {model.name},"
                " which is not currently available for inference",
            )

    def _retire(self, models: Iterable[Model]) -> None:
        for model in models:
            self._loaders.submit(model.retire)


def _why_unavailable(model: Model) -> str:
    failed = [version for version in model.versions() if version.error]
    if not failed:
        return f"{{name: {model.name}}} due to error: no versions in {model.base_path}"
    return ", ".join(
        f"{{name: {model.name} version: {version.number}}} due to error: {version.error}"
        for version in failed
    )
