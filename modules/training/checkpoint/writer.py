"""Saves in the background, one at a time."""

from __future__ import annotations

import logging
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import tensorflow as tf

from modules.training.checkpoint.bundle import message
from modules.training.checkpoint.error import CheckpointError
from modules.training.checkpoint.manifest import Manifest, Table
from modules.training.checkpoint.store import Checkpoints
from modules.training.checkpoint.tables import merge_chain

_LOG = logging.getLogger(__name__)
Write = Callable[[pathlib.Path], dict[str, Table]]
"""Writes a checkpoint's content below a folder -> the large tables whose chunks it wrote."""
Report = Callable[..., None]
"""(event, **values): `checkpoint_saved` (step, seconds, bytes, full: needs no older one) or
`checkpoint_failed` (step, seconds, reason)."""
_TOLERATED = (CheckpointError, OSError, tf.errors.OpError)


class AsyncWriter:
    """Writes checkpoints on a thread while training goes on.

    A CheckpointError, or an error of TensorFlow or the file system, is logged and
    reported; training goes on, and the next save holds what this one would have. Any other
    exception is a fault of the program and is raised by the next `save` or `wait`.

    Args:
      parent: step of the checkpoint that training started from; None: from the beginning.
      placement: for the manifest.
      report: called on the writer's thread.
    """

    def __init__(
        self, checkpoints: Checkpoints, parent: int | None, placement: str, report: Report
    ):
        self._checkpoints = checkpoints
        self._saved = parent
        self._placement = placement
        self._report = report
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[CheckpointError | None] | None = None
        self._failed: CheckpointError | None = None  # of the last save

    @property
    def saved(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._saved

    def save(self, step: int, write: Write) -> None:
        """Saves a step; returns at once, unless the last save is still being written.

        Args:
          write: called on the writer's thread: what it writes of variables that training changes
            must be copied before.

        Raises:
          Exception: of the last save, if it was a fault of the program.
        """
        self._finish()
        self._under_way = self._thread.submit(self._save, step, write)

    def wait(self) -> None:
        """Waits until nothing is being written.

        Raises:
          CheckpointError: the last save failed.
          Exception: of the last save, if it was a fault of the program.
        """
        self._finish()
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Ends the thread, after what is being written."""
        self._thread.shutdown()

    def _finish(self) -> None:
        if self._under_way is not None:
            save, self._under_way = self._under_way, None
            self._failed = save.result()

    def _save(self, step: int, write: Write) -> CheckpointError | None:
        started = time.monotonic()
        try:
            saved = self._write(step, write)
        except _TOLERATED as error:
            failed = _as_checkpoint_error(step, error)
            _LOG.warning("checkpoint of step %d: %s", step, failed)
            seconds = _seconds_since(started)
            self._report("checkpoint_failed", step=step, seconds=seconds, reason=str(failed))
            return failed
        size = sum(file.bytes for file in saved.files.values())
        seconds, full = _seconds_since(started), saved.parent is None
        self._report("checkpoint_saved", step=step, seconds=seconds, bytes=size, full=full)
        return None

    def _write(self, step: int, write: Write) -> Manifest:
        with self._checkpoints.begin(step, self._saved) as draft:
            tables = write(draft.folder)
            if draft.needs_merge:
                tables = merge_chain(draft, tables)
            saved = draft.commit(self._placement, tables)
        self._saved = step
        return saved


def _seconds_since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _as_checkpoint_error(step: int, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(f"step {step}: {message(error)}")
