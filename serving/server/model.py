"""A model: a base path of version directories, of which the newest is served."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import grpc

from serving import errors
from serving.server.servable import Options, Servable
from serving.server.version import State, Version

GRAPH_FILE = "saved_model.pb"
"""Pushers write it last, so a version directory without it is still being written."""


class Model:
    """The versions of one model. `poll` is called by one thread, all else by any.

    Attributes:
      name: as in requests.
      base_path: holds directories named by version number.
    """

    def __init__(self, name: str, base_path: str, options: Options = Options()):  # noqa: B008
        """
        Args:
          options: how its versions are loaded and run.
        """
        self.name = name
        self.base_path = pathlib.Path(base_path)
        self._options = options
        self._versions: dict[int, Version] = {}
        self._failed: dict[int, frozenset] = {}
        self._warned = ""

    def poll(self) -> None:
        """Brings what is served in line with the directory.

        The newest version is loaded first; older ones are unloaded once it is available, and stay
        if it can't be. A version that failed is tried again when its files change. Deleting the
        newest directory rolls back to the one before it; deleting all unloads the model.
        """
        found = self._find_versions()
        if found is None:
            return
        newest = max(found, default=None)
        if newest is not None:
            self._ensure_loaded(newest, found[newest])
            if self._versions[newest].state != State.AVAILABLE:
                return
        for version in list(self._versions.values()):
            if version.number != newest and version.state == State.AVAILABLE:
                version.unload()

    @contextlib.contextmanager
    def use(self, number: int | None) -> Iterator[tuple[int, Servable]]:
        """Holds one version loaded for the block.

        Args:
          number: the version; the newest available one if None.

        Raises:
          errors.ServingError: NOT_FOUND, it isn't available.
        """
        while True:
            version = self._newest_available() if number is None else self._versions.get(number)
            if version is None:
                raise self._not_found(number)
            with version.use() as loaded:
                if loaded is not None:
                    yield version.number, loaded
                    return
            if number is not None:
                raise self._not_found(number)
            # The newest was swapped for a newer one in between: ask again.

    def versions(self) -> list[Version]:
        """Every version ever seen, newest first."""
        return sorted(self._versions.values(), key=lambda version: -version.number)

    @property
    def available(self) -> bool:
        return self._newest_available() is not None

    def _newest_available(self) -> Version | None:
        return next((v for v in self.versions() if v.state == State.AVAILABLE), None)

    def _not_found(self, number: int | None) -> errors.ServingError:
        wanted = f"Latest({self.name})" if number is None else f"Specific({self.name}, {number})"
        return errors.ServingError(
            grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}"
        )

    def _find_versions(self) -> dict[int, pathlib.Path] | None:
        """Complete version directories by number; None (and a warning) if there's no base path."""
        try:
            entries = list(self.base_path.iterdir())
        except OSError as error:
            self._warn(f"{self.base_path} can't be read ({error.strerror}); waiting for it")
            return None
        found = {
            int(entry.name): entry
            for entry in entries
            if entry.name.isascii() and entry.name.isdigit() and (entry / GRAPH_FILE).is_file()
        }
        if found:
            self._warned = ""
        else:
            self._warn(
                f"no versions of {self.name} in {self.base_path} (directories named by a number,"
                f" with a {GRAPH_FILE}); waiting for one"
            )
        return found

    def _warn(self, text: str) -> None:
        if text != self._warned:
            logging.warning(text)
            self._warned = text

    def _ensure_loaded(self, number: int, path: pathlib.Path) -> None:
        known = self._versions.get(number)
        if known and known.state == State.AVAILABLE:
            return
        files = None
        if number in self._failed:
            files = _fingerprint(path)
            if files == self._failed[number]:
                return
        version = Version(number, str(path))
        # A new dictionary, so that readers on other threads never see one change under them.
        self._versions = {**self._versions, number: version}
        version.load(self._options)
        if version.error:
            self._failed[number] = files or _fingerprint(path)
        else:
            self._failed.pop(number, None)


def _fingerprint(path: pathlib.Path) -> frozenset:
    """Changes when any file below does; empty while they are being replaced."""
    try:
        stats = [(file, file.stat()) for file in path.rglob("*") if file.is_file()]
    except FileNotFoundError:  # Gone between being listed and being looked at.
        return frozenset()
    return frozenset((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
