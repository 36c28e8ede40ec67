"""One version of a model: START -> LOADING -> AVAILABLE -> UNLOADING -> END, as TF Serving's."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

import grpc

from serving import errors, protos
from serving.server import memory
from serving.server.servable import Options, Servable

State = protos.ModelVersionStatus


class Version:
    """A version directory and, while it is available, its loaded SavedModel.

    Attributes:
      number: the version.
      path: its directory.
      state: a value of `ModelVersionStatus.State`.
      error: why loading failed, in state END.
    """

    def __init__(self, number: int, path: str):
        self.number = number
        self.path = path
        self.state = State.START
        self.error: errors.ServingError | None = None
        self._model: Servable | None = None
        self._users = 0
        self._changed = threading.Condition()

    def load(self, options: Options) -> None:
        """Loads the SavedModel; afterwards the version is AVAILABLE, or END with an `error`."""
        self.state = State.LOADING
        start = time.monotonic()
        try:
            self._model = Servable(self.path, options)
        except Exception as error:  # Whatever it is: retries are counted by versions that failed.
            if isinstance(error, errors.ServingError):
                self.error = error
            else:
                self.error = errors.ServingError(grpc.StatusCode.INTERNAL, repr(error))
            self.state = State.END
            logging.error(
                "version %d can't be loaded from %s: %s", self.number, self.path, self.error
            )
            return
        self.state = State.AVAILABLE
        _let_requests_go_first()
        logging.info("version %d loaded in %.1f s", self.number, time.monotonic() - start)

    @contextlib.contextmanager
    def use(self) -> Iterator[Servable | None]:
        """Holds the SavedModel loaded for the block; None unless the version is available."""
        with self._changed:
            model = self._model if self.state == State.AVAILABLE else None
            self._users += model is not None
        try:
            yield model
        finally:
            with self._changed:
                self._users -= model is not None
                self._changed.notify_all()

    def unload(self) -> threading.Thread:
        """Takes no new requests; frees the memory once those under way are answered.

        Returns:
          The thread that waits for them and ends with the version: a request may take as long as
          its model does, and whoever unloads has other versions to load.
        """
        with self._changed:
            self.state = State.UNLOADING
        thread = threading.Thread(target=self._free, name=f"unload-{self.number}")
        thread.start()
        return thread

    def _free(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._users)
            model, self._model = self._model, None
        if model is not None:
            model.close()
            del model
            memory.give_back()
        self.state = State.END
        logging.info("version %d unloaded", self.number)


_NICENESS = 10


def _let_requests_go_first() -> None:
    """What this thread loads from now on competes with requests for the cores.

    Linux has a priority a thread, which those it starts inherit (warm-up); elsewhere nothing
    changes. Not before the first load: TensorFlow's own threads would inherit it too.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
