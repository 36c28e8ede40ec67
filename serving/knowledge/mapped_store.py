"""The embedded store: a directory of memory-mapped snapshots, `<root>/<version>/`."""

from __future__ import annotations

import fcntl
import pathlib
import shutil
import threading
from collections.abc import Iterable, Mapping

import numpy as np

from serving import errors
from serving.knowledge import erasure, manifest
from serving.knowledge.failures import invalid, unavailable, unknown_version
from serving.knowledge.snapshot import Snapshot, locked
from serving.knowledge.snapshot_writer import write_snapshot
from serving.knowledge.store import MAX_VERSIONS, Knowledge, Rows, check_keep, check_new

_STAGING = ".staging"


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
        self._opened: dict[int, Snapshot | errors.ServingError] = {}
        self.refresh()

    def refresh(self) -> None:
        """Opens versions that other processes published, lets go of those they dropped.

        Batches under way go on in the version they started in.
        """
        with self._refreshing:
            opened = {}
            for version in self._on_disk():
                there = self._opened.get(version) or self._open(version)
                if there:
                    opened[version] = there
            self._opened = opened  # one assignment: readers see the old versions or the new

    def versions(self) -> tuple[int, ...]:
        """As `store.Store.versions`, as of the last `refresh`."""
        opened = self._opened
        return tuple(sorted(v for v, there in opened.items() if isinstance(there, Snapshot)))

    def damaged(self) -> dict[int, errors.ServingError]:
        """Versions on disk that can't be served, and why."""
        opened = self._opened
        return {v: e for v, e in sorted(opened.items()) if isinstance(e, errors.ServingError)}

    def get(self, wanted: Mapping[str, np.ndarray], version: int | None) -> Knowledge:
        """As `store.Store.get`.

        Raises:
          errors.ServingError: NOT_FOUND; DATA_LOSS, the version asked for is damaged.
        """
        opened = self._opened
        sound = [v for v, there in opened.items() if isinstance(there, Snapshot)]
        there = opened.get(max(sound, default=0) if version is None else version)
        if there is None:
            raise unknown_version(version, sound)
        if isinstance(there, errors.ServingError):
            raise there
        return there.get(wanted)

    def publish(self, version: int, chunks: Iterable[Rows]) -> None:
        """As `store.Store.publish`."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with locked(self._root, fcntl.LOCK_EX):
                for leftover in self._root.glob(f"{_STAGING}*"):
                    shutil.rmtree(leftover)
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
        snapshots and backups may keep the old bytes.
        """
        removed = False
        try:
            with locked(self._root, fcntl.LOCK_EX):
                for version in self._on_disk():
                    folder = self._root / str(version)
                    with locked(folder, fcntl.LOCK_EX):
                        removed |= erasure.erase_user(folder, user)
        except OSError as error:
            raise unavailable(f"the user can't be erased: {error}") from None
        return removed

    def _on_disk(self) -> list[int]:
        if not self._root.exists():
            return []
        names = (path.name for path in self._root.iterdir())
        return sorted(int(n) for n in names if n.isascii() and n.isdigit() and n[0] != "0")

    def _open(self, version: int) -> Snapshot | errors.ServingError | None:
        """The snapshot, or why it can't be served; None if it was dropped meanwhile."""
        folder = self._root / str(version)
        try:
            return Snapshot(folder, check=self._check)
        except errors.ServingError as error:
            return error
        except OSError as error:
            return unavailable(f"{folder}: {error}") if folder.exists() else None

    def _drop_oldest(self) -> None:
        for version in self._on_disk()[: -self._keep]:
            dropped = self._root / f"{_STAGING}-dropped-{version}"
            (self._root / str(version)).rename(dropped)
            shutil.rmtree(dropped)
