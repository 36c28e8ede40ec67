"""The embedded store: a directory of memory-mapped snapshots, `<root>/<version>/`."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import pathlib
import shutil
import threading
from collections.abc import Iterable, Mapping

import numpy as np

from serving import errors
from serving.errors import invalid
from serving.knowledge import erasure, manifest
from serving.knowledge.failures import unavailable, unknown_version
from serving.knowledge.snapshot import Snapshot, locked
from serving.knowledge.snapshot_writer import write_snapshot
from serving.knowledge.store import MAX_VERSIONS, Knowledge, Rows, check_keep, check_new

_STAGING = ".staging"


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What a version's directory holds, or why that can't be served; and when it last changed."""

    changed_ns: int
    snapshot: Snapshot | None = None
    error: errors.ServingError | None = None


class MappedStore:
    """A `store.Store` in files. Any number of processes may read while one writes.

    A version is written beside the others and renamed to its place: it is there whole or not at
    all. What a killed writer left is removed by the next one.
    """

    def __init__(
        self,
        root: str | pathlib.Path,
        *,
        keep: int = MAX_VERSIONS,
        dtype: str = "float32",
        check: bool = True,
    ):
        """Opens the versions there are.

        Args:
          root: the directory; made by the first `publish`.
          keep: versions kept, at most `MAX_VERSIONS`.
          dtype: of vectors on disk, float32 or float16; answers are float32.
          check: compare checksums of every file when it is opened (see `Snapshot`).

        Raises:
          errors.ServingError: INVALID_ARGUMENT, a bad argument. A damaged version raises when it
            is asked for; see `damaged`.
        """
        if dtype not in ("float32", "float16"):
            raise invalid(f"vectors are stored as float32 or float16, not {dtype}")
        self._root = pathlib.Path(root)
        if self._root.exists() and not self._root.is_dir():
            raise invalid(f"{self._root} is a file; give the directory of versions")
        self._keep = check_keep(keep)
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._check = check
        self._refreshing = threading.Lock()
        self._opened: dict[int, _Opened] = {}
        self.refresh()

    def refresh(self) -> None:
        """Opens versions that other processes published, lets go of those they dropped.

        Batches under way go on in the version they started in.
        """
        with self._refreshing:
            opened = {}
            for version in self._on_disk():
                with contextlib.suppress(FileNotFoundError):  # dropped meanwhile
                    opened[version] = self._open(version)
            self._opened = opened  # one assignment: readers see the old versions or the new

    def versions(self) -> tuple[int, ...]:
        """As `store.Store.versions`, as of the last `refresh`."""
        return tuple(sorted(v for v, there in self._opened.items() if there.snapshot))

    def damaged(self) -> dict[int, errors.ServingError]:
        """Versions on disk that can't be served, and why."""
        return {v: there.error for v, there in sorted(self._opened.items()) if there.error}

    def get(self, wanted: Mapping[str, np.ndarray], version: int | None) -> Knowledge:
        """As `store.Store.get`; the latest is the latest that isn't damaged.

        Raises:
          errors.ServingError: NOT_FOUND; DATA_LOSS, the version asked for is damaged.
        """
        opened = self._opened
        sound = [v for v, there in opened.items() if there.snapshot]
        there = opened.get(max(sound, default=0) if version is None else version)
        if there is None:
            raise unknown_version(version, sound)
        if there.snapshot is None:
            raise there.error or AssertionError("one of the two is there")
        return there.snapshot.get(wanted)

    def publish(self, version: int, chunks: Iterable[Rows]) -> None:
        """As `store.Store.publish`."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with locked(self._root, fcntl.LOCK_EX):
                self._remove_leftovers()
                check_new(version, self._on_disk(), self._keep)
                staging = self._root / f"{_STAGING}-{version}"
                staging.mkdir()
                try:
                    write_snapshot(staging, version, chunks, self._dtype)
                except BaseException:
                    shutil.rmtree(staging, ignore_errors=True)
                    raise
                staging.rename(self._root / str(version))
                manifest.sync(self._root)
                self._drop_oldest()
        except OSError as error:
            raise unavailable(f"version {version} can't be written: {error}") from None
        self.refresh()

    def delete_user(self, user: str) -> bool:
        """As `store.Store.delete_user`: in every version on disk, also for other processes.

        "Overwritten" is what this program can see to: a file system that copies on write, its
        snapshots and backups may keep the old bytes. A dropped version's files are gone when the
        last process that has them open looks for versions again (`refresh`).

        Raises:
          errors.ServingError: the user is erased from all versions but those the message names,
            which are damaged (DATA_LOSS) or can't be written (UNAVAILABLE).
        """
        removed = False
        failed: dict[int, errors.ServingError] = {}
        try:
            with locked(self._root, fcntl.LOCK_EX):
                self._remove_leftovers()  # what a killed writer wrote may hold the user too
                self.refresh()
                for version in self._on_disk():
                    try:
                        removed |= self._erase(version, user)
                    except errors.ServingError as error:
                        failed[version] = error
        except OSError as error:
            raise unavailable(f"the user can't be erased: {error}") from None
        self.refresh()
        if failed:
            reasons = "; ".join(f"version {v} ({error.message})" for v, error in failed.items())
            raise errors.ServingError(
                next(iter(failed.values())).code,
                f"the user is erased, but not from {reasons}. Remove the directories of damaged"
                " versions, and erase again",
            )
        return removed

    def _erase(self, version: int, user: str) -> bool:
        """Leaves a damaged version as it is: new checksums would make the damage look sound."""
        if error := self.damaged().get(version):
            raise error
        folder = self._root / str(version)
        try:
            with locked(folder, fcntl.LOCK_EX):
                return erasure.erase_user(folder, user)
        except OSError as error:
            raise unavailable(f"{folder}: {error}") from None

    def _remove_leftovers(self) -> None:
        """What killed writers left; the caller holds the exclusive lock."""
        for leftover in self._root.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover)

    def _on_disk(self) -> list[int]:
        if not self._root.exists():
            return []
        names = (path.name for path in self._root.iterdir())
        return sorted(int(n) for n in names if n.isascii() and n.isdigit() and n[0] != "0")

    def _open(self, version: int) -> _Opened:
        """What was opened before, unless damage may be mended. Raises FileNotFoundError."""
        folder = self._root / str(version)
        changed = folder.stat().st_mtime_ns
        before = self._opened.get(version)
        if before and (before.snapshot or before.changed_ns == changed):
            return before
        try:
            return _Opened(changed, snapshot=Snapshot(folder, check=self._check))
        except errors.ServingError as error:
            return _Opened(changed, error=error)
        except OSError as error:
            folder.stat()
            return _Opened(changed, error=unavailable(f"{folder}: {error}"))

    def _drop_oldest(self) -> None:
        for version in self._on_disk()[: -self._keep]:
            dropped = self._root / f"{_STAGING}-dropped-{version}"
            (self._root / str(version)).rename(dropped)
            shutil.rmtree(dropped)
