"""Saves in the background, one at a time."""

from __future__ import annotations

import logging
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import tensorflow as tf

from modules.training.checkpoint import manifest
from modules.training.checkpoint.bundle import message
from modules.training.checkpoint.error import CheckpointError
from modules.training.checkpoint.manifest import Manifest, Tables
from modules.training.checkpoint.store import Checkpoints
from modules.training.checkpoint.tables import merge_chain

_LOG = logging.getLogger(__name__)
Part = Callable[[pathlib.Path], Tables]
"""Writes a part of a checkpoint below a folder -> which chunks of large tables it wrote."""
Report = Callable[..., None]
"""(event, **values): `checkpoint_saved` (step, seconds, bytes, full: needs no older one) or
`checkpoint_failed` (step, seconds, reason)."""
_TOLERATED = (CheckpointError, OSError, tf.errors.OpError)


class AsyncWriter:
    """Writes checkpoints on a thread while training goes on.

    A CheckpointError, or an error of TensorFlow or the file system in a part, is logged and
    reported; training goes on, and the next save holds what this one would have. Any other
    exception is a fault of the program and is raised by the next `save` or `wait`.

    Args:
      parent: step of the checkpoint that training started from; None: from the beginning.
      placement: for the manifest.
      report: called on the writer's thread.
      threads: parts written at a time (each may wait for another process).
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        parent: int | None,
        placement: str,
        report: Report,
        threads: int = 8,
    ):
        self._checkpoints = checkpoints
        self._saved = parent
        self._placement = placement
        self._report = report
        self._saver = ThreadPoolExecutor(1, "checkpoint")
        self._parts = ThreadPoolExecutor(threads, "checkpoint-part")
        self._room = threading.BoundedSemaphore(2)  # one is written, one waits
        self._pending: list[Future[CheckpointError | None]] = []
        self._failed: CheckpointError | None = None  # of the last save

    @property
    def saved(self) -> int | None:
        """Step of the newest complete checkpoint: what a lost shard is restored from."""
        return self._saved

    @property
    def busy(self) -> bool:
        """Whether a save is being written or waits."""
        return any(not save.done() for save in self._pending)

    def save(self, step: int, parts: Sequence[Part], ended: Callable[[bool], None]) -> None:
        """Saves a step; returns at once, unless one save is being written and another waits.

        A step that is saved already is not written again.

        Args:
          parts: called on other threads, several at a time: what they write of variables that
            training changes must be copied before.
          ended: called after the parts with whether what they wrote is saved: shards then
            forget or keep which rows are still to be saved.

        Raises:
          Exception: of an earlier save, if it was a fault of the program.
        """
        self._forget_done()
        self._room.acquire()
        self._pending.append(self._saver.submit(self._save, step, parts, ended))
        self._pending[-1].add_done_callback(lambda _: self._room.release())

    def wait(self) -> None:
        """Waits until nothing is being written.

        Raises:
          CheckpointError: the last save failed.
          Exception: of a save, if it was a fault of the program.
        """
        wait(self._pending)
        self._forget_done()
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Ends the threads, after what is being written."""
        self._saver.shutdown()
        self._parts.shutdown()

    def _forget_done(self) -> None:
        while self._pending and self._pending[0].done():
            self._failed = self._pending.pop(0).result()

    def _save(
        self, step: int, parts: Sequence[Part], ended: Callable[[bool], None]
    ) -> CheckpointError | None:
        if step == self._saved:
            ended(False)
            return None
        started = time.monotonic()
        failed: CheckpointError | None = None
        saved: Manifest | None = None
        try:
            saved = self._write(step, parts)
        except _TOLERATED as error:
            failed = _as_checkpoint_error(step, error)
        try:
            ended(saved is not None)
        except _TOLERATED as error:
            failed = _as_checkpoint_error(step, error)
        seconds = round(time.monotonic() - started, 3)
        if saved is not None:
            size = sum(file.bytes for file in saved.files.values())
            full = saved.parent is None
            self._report("checkpoint_saved", step=step, seconds=seconds, bytes=size, full=full)
        if failed is not None:
            _LOG.warning("checkpoint of step %d: %s", step, failed)
            self._report("checkpoint_failed", step=step, seconds=seconds, reason=str(failed))
        return failed

    def _write(self, step: int, parts: Sequence[Part]) -> Manifest:
        with self._checkpoints.begin(step, self._saved) as draft:
            writing = [self._parts.submit(part, draft.folder) for part in parts]
            wait(writing)  # all of them, as a failed draft's folder is removed
            tables = manifest.join(part.result() for part in writing)
            if draft.needs_merge:
                tables = merge_chain(draft, tables)
            saved = draft.commit(self._placement, tables)
        self._saved = step
        return saved


def _as_checkpoint_error(step: int, error: Exception) -> CheckpointError:
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(f"step {step}: {message(error)}")
