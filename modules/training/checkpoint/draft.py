"""A checkpoint that is being written: readers don't see it before it is complete."""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
import shutil
from collections.abc import Callable
from types import TracebackType

from modules.training.checkpoint import checksum, manifest
from modules.training.checkpoint.error import CheckpointError
from modules.training.checkpoint.manifest import Manifest, Table


class Draft:
    """What `Checkpoints.begin` gives. Anyone may write below `folder` until `commit`.

        with checkpoints.begin(step=500, parent=400) as draft:
            ...  # write below draft.folder
            draft.commit("single", tables)

    Leaving the block without a commit aborts; an OSError leaves it as a CheckpointError.

    Attributes:
      folder: where to write; every process that writes a part must see it.
      ancestors: what this one's chunks are changes to: manifests by folder, the oldest first
        (not verified). Cleared by `tables.merge_chain`: then the chunks hold every row touched
        since initialization.
      needs_merge: one more delta would make the chain too long.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        target: pathlib.Path,
        run: str,
        step: int,
        ancestors: dict[pathlib.Path, Manifest],
        max_deltas: int,
        committed: Callable[[], None],
        held: contextlib.ExitStack,
    ):
        self.folder = folder
        self.step = step
        self.ancestors = ancestors
        self.needs_merge = len(ancestors) > max_deltas
        self._target = target
        self._run = run
        self._committed = committed
        self._held = held
        self._open = True

    def commit(self, placement: str, tables: dict[str, Table]) -> Manifest:
        """Makes everything below `folder` durable, then visible under its step's name.

        Args:
          placement: what wrote it, for the record.
          tables: by name; every large table, also one without touched rows.

        Raises:
          CheckpointError: a chunk is missing, or the file system fails. The draft is removed;
            earlier checkpoints are as they were.
        """
        with self:
            names = [p.relative_to(self.folder).as_posix() for p in _files(self.folder)]
            _require_chunks(tables, set(names))
            written = Manifest(
                run=self._run,
                step=self.step,
                parent=max((m.step for m in self.ancestors.values()), default=None),
                created=datetime.datetime.now(datetime.timezone.utc).isoformat(),
                placement=placement,
                files=checksum.describe(self.folder, names, sync=True),
                tables=tables,
            )
            manifest.write(self.folder, written)
            for folder, _, _ in os.walk(self.folder):
                _sync_folder(folder)
            self.folder = self.folder.rename(self._target)
            _sync_folder(self._target.parent)
            self._open = False
            with self._held:
                self._committed()
            return written

    def abort(self) -> None:
        """Removes what was written. What can't be removed now goes with the next `begin`."""
        if self._open:
            self._open = False
            with self._held:
                shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()
        if isinstance(error, OSError):
            raise CheckpointError(f"{self._target} was not saved: {error}") from error


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _require_chunks(tables: dict[str, Table], names: set[str]) -> None:
    for table, saved in tables.items():
        for prefix in saved.chunks:
            if f"{prefix}.index" not in names:
                raise CheckpointError(f"table {table!r}: {prefix}.index was not written")


def _sync_folder(folder: str | pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
