"""A training run's checkpoints: what is in one, when it is taken, how a run goes on from it."""

from __future__ import annotations

import contextlib
import functools
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from modules.embeddings.tier.layout import TierError
from modules.training.checkpoint import dense
from modules.training.checkpoint.error import CheckpointError
from modules.training.checkpoint.manifest import Table
from modules.training.checkpoint.store import Checkpoint, Checkpoints
from modules.training.checkpoint.tables import chunks, read_chunks, require_shape
from modules.training.checkpoint.writer import AsyncWriter
from modules.training.placements.placement import Placement
from modules.training.step import Step, tables_of

_LOG = logging.getLogger(__name__)
_STAGING = "rows-"
_UNWRITABLE = (CheckpointError, OSError, tf.errors.OpError, TierError)


class Saving:
    """Saves and restores everything that training changes.

    What training changes next is copied while it waits: dense variables to memory, touched rows to
    disk (by the processes that hold them). The rest (writing, checksums, merging) goes on beside
    it.

    Args:
      run: fingerprint of what is trained.
      writes: whether this trainer is the one that writes (the chief); all of them restore.
      report: told what is saved, and what failed.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        run: str,
        module: Any,
        step: Step,
        placement: Placement,
        placement_name: str,
        *,
        keep: int,
        max_deltas: int,
        writes: bool,
        report: Callable[..., None],
    ):
        self._folder = pathlib.Path(folder)
        self._run = run
        self._objects = trained_objects(module) | {
            "dense_optimizer": step.dense_optimizer,
            "table_optimizer": step.table_optimizer,
        }
        self._without = large_shards(module)
        self._placement, self._placement_name = placement, placement_name
        self._checkpoints = Checkpoints(folder, run, keep, max_deltas)
        self._writes = writes
        self._report = report
        self._rows_marked = False  # as those of the save under way

    def resume(self) -> int | None:
        """Restores the newest usable checkpoint on every trainer.

        Returns:
          The step to go on from; None without a checkpoint.

        Raises:
          CheckpointError: all are damaged, or can't be read.
        """
        newest = self._checkpoints.latest() if self._writes else None
        for skipped in self._checkpoints.skipped:
            self._report("checkpoint_skipped", step=skipped.step, reason=skipped.reason)
        # Other trainers add nothing: 0 is no checkpoint, 1 one of step 0.
        told = self._placement.sum_over_hosts(newest.step + 1 if newest else 0)
        step = told - 1 if told else None
        checkpoint = newest
        if not self._writes and step is not None:
            checkpoint = self._checkpoints.at(step)
        if checkpoint is not None:
            dense.restore(str(checkpoint.folder / dense.NAME), self._objects, self._without)
            self._report("resumed", step=step)
        self._placement.tables.restore(table_chunks(checkpoint))
        if self._writes:
            self._remove_staging()
        self._writer = AsyncWriter(self._checkpoints, step, self._placement_name, self._report)
        return step

    def start_from(self, other: Checkpoint) -> None:
        """Makes what was restored from another run's checkpoint this run's step 0.

        Its rows are in this run's checkpoints then, whether this run touches them or not.

        Raises:
          CheckpointError: it can't be written.
        """
        values = dense.dense_snapshot(self._objects, self._without)
        if not self._writes:
            return
        tables = other.manifest.tables
        with self._checkpoints.begin(0, None) as draft:
            for prefix in (prefix for table in tables.values() for prefix in table.chunks):
                (draft.folder / prefix).parent.mkdir(parents=True, exist_ok=True)
                for path in (other.folder / prefix).parent.glob(f"{pathlib.Path(prefix).name}.*"):
                    shutil.copyfile(path, (draft.folder / prefix).parent / path.name)
            dense.write(str(draft.folder / dense.NAME), values)
            draft.commit(self._placement_name, tables)
        self._writer.close()
        self._writer = AsyncWriter(self._checkpoints, 0, self._placement_name, self._report)

    def save(self, step: int) -> None:
        """Takes a checkpoint. What can't be written is reported, and is in the next one."""
        self._settle()
        with contextlib.suppress(CheckpointError):  # it was logged and reported
            self._take(step)

    def finish(self, step: int) -> Checkpoint | None:
        """Saves the last step, unless it is saved already, and waits for it.

        Returns:
          None where another trainer writes.

        Raises:
          CheckpointError: it can't be written.
        """
        self._settle()
        if self._placement.sum_over_hosts(self._writes and self._writer.saved != step):
            self._take(step)
        failed = self._settle()
        self.close()
        if failed:
            raise failed
        return self._checkpoints.at(step) if self._writes else None

    def close(self) -> None:
        """Waits for what is being written. The tables aren't told: they may be out of reach."""
        self._writer.close()

    def _take(self, step: int) -> None:
        values = dense.dense_snapshot(self._objects, self._without)
        if not self._writes:
            return
        staging = self._folder / f"{_STAGING}{step}"
        try:
            staging.mkdir(parents=True)
            rows = self._placement.tables.save(str(staging))
        except _UNWRITABLE as error:
            self._placement.tables.end_save(False)
            shutil.rmtree(staging, ignore_errors=True)
            self._report("checkpoint_failed", step=step, reason=str(error))
            _LOG.warning("checkpoint of step %d: %s", step, error)
            raise CheckpointError(f"checkpoint of step {step}: {error}") from error
        self._rows_marked = True
        self._writer.save(step, functools.partial(_write, values, staging, rows))

    def _settle(self) -> CheckpointError | None:
        """Waits for the save under way; its rows are saved, or still to be. Returns why it wasn't
        written."""
        # Unmarked first: after a fault of the program nothing is said to be saved.
        marked, self._rows_marked = self._rows_marked, False
        failed = None
        try:
            self._writer.wait()
        except CheckpointError as error:  # it was logged and reported
            failed = error
        if marked:
            self._placement.tables.end_save(failed is None)
            if failed:
                self._remove_staging()
        return failed

    def _remove_staging(self) -> None:
        for leftover in self._folder.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover)


def shared_objects(module: Any) -> dict[str, tf.Module]:
    """What both phases train, as a checkpoint calls it."""
    return {"tables": module.tables, "encoder": module.encoder}


def trained_objects(module: Any) -> dict[str, tf.Module]:
    """All of a module, as a checkpoint calls it; `module` is what isn't shared."""
    return shared_objects(module) | {"module": module}


def large_shards(module: tf.Module) -> list[tf.Variable]:
    """Variables that a checkpoint holds as tables, not with the dense ones."""
    return [shard for table in tables_of(module) if table.large for shard in table.shards]


def table_chunks(checkpoint: Checkpoint | None) -> dict[str, list[str]]:
    """By table: absolute prefixes of its touched rows, oldest first."""
    if checkpoint is None:
        return {}
    return {name: chunks(checkpoint, name) for name in checkpoint.manifest.tables}


def newest_chunks(folder: pathlib.Path, run: str) -> dict[str, list[str]] | None:
    """`table_chunks` of the newest complete checkpoint; None without one. For any trainer.

    Raises:
      CheckpointError: it can't be read.
    """
    checkpoints = Checkpoints(folder, run)
    steps = checkpoints.steps()
    return table_chunks(checkpoints.at(steps[-1])) if steps else None


def load_into(module: Any, checkpoint: Checkpoint) -> None:
    """Gives a built module, all of it in this process, the values of a checkpoint.

    Raises:
      CheckpointError: it is another module's, or damaged.
    """
    dense.restore(
        str(checkpoint.folder / dense.NAME), trained_objects(module), large_shards(module)
    )
    for table in tables_of(module):
        if table.large and table.shards:  # a dynamic table's variables are the module's
            (rows,) = table.shards
            require_shape(checkpoint, table.name, table.num_rows, table.dim)
            for saved in read_chunks(checkpoint, table.name):
                rows.scatter_update(tf.IndexedSlices(saved.rows, saved.ids))


def _write(
    values: Mapping[str, np.ndarray],
    staging: pathlib.Path,
    rows: Mapping[str, Any],
    folder: pathlib.Path,
) -> dict[str, Table]:
    """Dense values, and the rows that are staged already."""
    dense.write(str(folder / dense.NAME), values)
    for part in staging.iterdir():
        part.rename(folder / part.name)
    staging.rmdir()
    return {name: Table.model_validate(table) for name, table in rows.items()}
