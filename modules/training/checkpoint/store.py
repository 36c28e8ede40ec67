"""The folder of a run's checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator

from modules.training.checkpoint import checksum, manifest
from modules.training.checkpoint.draft import Draft
from modules.training.checkpoint.error import CheckpointError, DamagedError
from modules.training.checkpoint.manifest import Manifest

_LOG = logging.getLogger(__name__)
_STEP = re.compile(r"step-(\d{9,})")
_UNFINISHED = ".tmp-"
_DAMAGED = "damaged-"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A complete, verified checkpoint; `parent` is what its tables' chunks are changes to."""

    folder: pathlib.Path
    manifest: Manifest
    parent: Checkpoint | None

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def chain(self) -> tuple[Checkpoint, ...]:
        """From the oldest ancestor to this one."""
        return (*(self.parent.chain if self.parent else ()), self)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A checkpoint that couldn't be used, why, and where it is now."""

    step: int
    reason: str
    folder: pathlib.Path


class Checkpoints:
    """Complete checkpoints of one run, `step-<9 digits>`, on a file system that all share.

    One process writes at a time, under a lock (flock) that ends with it.

    Args:
      folder: made by the first `begin`.
      run: fingerprint of what is trained; another run's checkpoints are refused.
      keep: the newest so many are kept, with all that their tables need; from two on also one
        that needs none of the same files, should a file be damaged.
      max_deltas: longest chain of changes; the next checkpoint is a merged, full one.

    Attributes:
      skipped: what `latest` couldn't use so far.
    """

    def __init__(self, folder: str | pathlib.Path, run: str, keep: int = 3, max_deltas: int = 8):
        if keep < 1 or max_deltas < 0:
            raise ValueError(f"keep is {keep} (at least 1), max_deltas {max_deltas} (at least 0)")
        self.folder = pathlib.Path(folder)
        self.run = run
        self.keep = keep
        self.max_deltas = max_deltas
        self.skipped: list[Skipped] = []

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; not verified."""
        if not self.folder.is_dir():
            return []
        names = (_STEP.fullmatch(name) for name in os.listdir(self.folder))
        return sorted(int(name[1]) for name in names if name)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, with all that it needs. For the trainer.

        Reads every byte of it. A damaged one is logged, listed in `skipped` and renamed to
        `damaged-…`, and so are those that need it.

        Returns:
          None: nothing was saved yet.

        Raises:
          CheckpointError: all are damaged; or the folder is another run's, or can't be read at all
            (permissions, a lost mount), which says nothing about what is in it.
        """
        opened: dict[int, Checkpoint] = {}
        for step in reversed(self.steps()):
            try:
                return self._open(step, opened)
            except DamagedError as damage:
                self._set_aside(step, str(damage))
        if any(self.folder.glob(f"{_DAMAGED}*")):
            raise CheckpointError(
                f"{self.folder}: all checkpoints are damaged, and kept as {_DAMAGED}…: put one back"
                " in order and under its old name, or remove them all to train from the beginning"
            )
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, verified; renames nothing.

        Raises:
          CheckpointError: it is missing or damaged, another run's, or can't be read.
        """
        return self._open(step, {})

    def begin(self, step: int, parent: int | None) -> Draft:
        """Starts a checkpoint; what dead processes left unfinished is removed.

        Args:
          parent: step of the checkpoint that this process saved or restored last.

        Raises:
          CheckpointError: another process is writing or has written meanwhile, or the file
            system fails.
        """
        with _as_checkpoint_error(self.folder), contextlib.ExitStack() as held:
            self.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(self.folder / ".lock"))
            self._require_newest(parent, step)
            for leftover in self.folder.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(leftover)
            ancestors = [] if parent is None else self._ancestors(parent)
            folder = self.folder / f"{_UNFINISHED}{_name(step)}-{uuid.uuid4().hex[:8]}"
            folder.mkdir()
            return Draft(
                folder,
                self.folder / _name(step),
                self.run,
                step,
                dict(reversed(ancestors)),
                self.max_deltas,
                committed=self._prune,
                held=held.pop_all(),
            )

    def _open(self, step: int, opened: dict[int, Checkpoint]) -> Checkpoint:
        if step in opened:
            return opened[step]
        folder = self.folder / _name(step)
        with _as_checkpoint_error(folder):
            found = manifest.read(folder)
            if found.run != self.run:
                raise CheckpointError(
                    f"{folder} is of run {found.run!r}, not {self.run!r}: use another folder"
                )
            _verify(folder, found)
        parent = None
        if found.parent is not None:
            try:
                parent = self._open(found.parent, opened)
            except DamagedError as damage:
                raise DamagedError(f"needs {_name(found.parent)}: {damage}") from damage
        opened[step] = Checkpoint(folder, found, parent)
        return opened[step]

    def _ancestors(self, step: int) -> list[tuple[pathlib.Path, Manifest]]:
        """The checkpoint of a step and all that it needs, newest first; not verified."""
        found = []
        needed: int | None = step
        while needed is not None:
            folder = self.folder / _name(needed)
            found.append((folder, manifest.read(folder)))
            needed = found[-1][1].parent
        return found

    def _require_newest(self, parent: int | None, step: int) -> None:
        newest = max(self.steps(), default=None)
        if newest != parent:
            raise CheckpointError(
                f"{self.folder}: the newest checkpoint is of step {newest}, but this process goes "
                f"on from {parent}: another one trains the same run, or moved it away. To go on "
                "from an older checkpoint, move the newer ones away and start again"
            )
        if parent is not None and step <= parent:
            raise CheckpointError(f"{self.folder}: step {step} is not after {parent}")

    def _set_aside(self, step: int, reason: str) -> None:
        folder = self.folder / _name(step)
        target = self.folder / f"{_DAMAGED}{folder.name}"
        while target.exists():
            target = target.with_name(f"{_DAMAGED}{folder.name}-{uuid.uuid4().hex[:8]}")
        with _as_checkpoint_error(folder):
            folder.rename(target)
        self.skipped.append(Skipped(step, reason, target))
        _LOG.warning("checkpoint %s is not usable: %s; kept as %s", folder, reason, target.name)

    def _prune(self) -> None:
        """Removes what is too old. A failure is logged: the new checkpoint is safe."""
        steps = self.steps()
        try:
            needed = self._needed(steps)
            for step in sorted(set(steps) - needed, reverse=True):
                # First out of sight, as half a checkpoint would look like a damaged one.
                folder = self.folder / f"{_UNFINISHED}pruned-{_name(step)}"
                (self.folder / _name(step)).rename(folder)
                shutil.rmtree(folder)
        except (OSError, CheckpointError) as error:
            _LOG.warning("%s: old checkpoints were not all removed: %s", self.folder, error)

    def _needed(self, steps: list[int]) -> set[int]:
        needed: set[int] = set()
        roots: set[int] = set()
        for kept, step in enumerate(reversed(steps)):
            chain = [found.step for _, found in self._ancestors(step)]
            if kept < self.keep or (len(roots) == 1 < self.keep and chain[-1] not in roots):
                needed.update(chain)
                roots.add(chain[-1])
        return needed


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _verify(folder: pathlib.Path, found: Manifest) -> None:
    if folder.name != _name(found.step):
        raise DamagedError(f"{manifest.NAME} is that of step {found.step}")
    if found.parent is not None and found.parent >= found.step:
        raise DamagedError(f"{manifest.NAME} names the later step {found.parent} as its parent")
    for name, file in found.files.items():
        size = (folder / name).stat().st_size
        if size != file.bytes:
            raise DamagedError(f"{name} has {size} bytes instead of {file.bytes}")
    for name, file in checksum.describe(folder, found.files).items():
        if file != found.files[name]:
            raise DamagedError(f"{name} has another checksum than when it was written")


@contextlib.contextmanager
def _as_checkpoint_error(place: pathlib.Path) -> Iterator[None]:
    """A file that is gone or unreadable on the disk is damage; any other failure isn't."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise DamagedError(f"{error.filename} is missing") from error
        if error.errno == errno.EIO:
            raise DamagedError(f"{place}: {error}") from error
        raise CheckpointError(f"{place}: {error}") from error


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{path.parent}: another process is saving here") from None
        yield
