"""A model: a base path of version directories, of which its policy says which are served."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import threading
import time
from collections.abc import Container, Iterator

import grpc
from google.protobuf import message

from serving import errors
from serving.server import policy
from serving.server.servable import Options, Servable
from serving.server.version import State, Version

GRAPH_FILE = "saved_model.pb"
"""Pushers write it last, so a version directory without it is still being written."""

_LARGEST_VERSION = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Retries:
    """How often a version that can't be loaded is tried again, unless its files change.

    Attributes:
      count: attempts after the first.
      interval: seconds between them.
    """

    count: int = 5
    interval: float = 60.0


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What a failed load left behind: try again when the files change, or at `retry_at`."""

    files: frozenset
    retries: int
    retry_at: float


class Model:
    """The versions of one model. Thread-safe.

    Attributes:
      name: as in requests.
      base_path: holds directories named by version number.
      labels: version label -> version.
    """

    def __init__(
        self,
        config: message.Message,
        options: Options = Options(),  # noqa: B008
        retries: Retries = Retries(),  # noqa: B008
    ):
        """
        Args:
          config: a ModelConfig.
          options: how its versions are loaded and run.
          retries: of loads that fail.
        """
        self.name = config.name
        self.base_path = pathlib.Path(config.base_path)
        self._options = options
        self._retries = retries
        self._versions: dict[int, Version] = {}
        self._failures: dict[int, _Failure] = {}
        self._warned = ""
        self._retired = False
        self._polling = threading.Lock()
        self.configure(config)

    def configure(self, config: message.Message) -> None:
        """Takes over a ModelConfig's labels, and its version policy from the next `poll` on."""
        self.labels = dict(config.version_labels)
        self._policy = config.model_version_policy

    def poll(self) -> None:
        """Brings what is served in line with the directory and the policy, added tasks last.

        Versions the policy wants are loaded, the newest first. The others are unloaded once one
        of those is available, and stay if none can be (availability_preserving_policy.h).
        Deleting the newest directory rolls back to the one before it; deleting all unloads the
        model.
        """
        with self._polling:
            if not self._retired:
                self._poll_versions()
                self._poll_tasks()

    def _poll_versions(self) -> None:
        found = self._find_versions()
        if found is None:
            return
        wanted = policy.wanted_versions(self._policy, found)
        for number in wanted:
            self._ensure_loaded(number, found[number])
        if found and not any(self.is_available(number) for number in wanted):
            return
        self._unload(keep=wanted)

    def _poll_tasks(self) -> None:
        for version in self.versions():
            with version.use() as servable:
                if servable is not None and servable.added_tasks:
                    servable.added_tasks.poll()

    def retire(self) -> None:
        """Unloads every version for good; each goes once its requests are answered."""
        with self._polling:
            self._retired = True
            self._unload(keep=())

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
                raise self._not_available(number)
            with version.use() as loaded:
                if loaded is not None:
                    yield version.number, loaded
                    return
            if number is not None:
                raise self._not_available(number)
            # The newest was swapped for a newer one in between: ask again.

    def versions(self) -> list[Version]:
        """Every version ever seen, newest first."""
        return sorted(self._versions.values(), key=lambda version: -version.number)

    def is_available(self, number: int | None = None) -> bool:
        """Whether a version, or any if None, answers requests."""
        version = self._newest_available() if number is None else self._versions.get(number)
        return version is not None and version.state == State.AVAILABLE

    def _not_available(self, number: int | None) -> errors.ServingError:
        error = not_found(self.name, number)
        loading = [
            str(version.number)
            for version in self.versions()
            if version.state in (State.START, State.LOADING) and number in (None, version.number)
        ]
        if loading:
            error = errors.ServingError(
                error.code, f"{error.message} (version {', '.join(loading)} is still loading)"
            )
        return error

    def _newest_available(self) -> Version | None:
        return next((v for v in self.versions() if v.state == State.AVAILABLE), None)

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
            if entry.name.isascii()
            and entry.name.isdigit()
            and int(entry.name) <= _LARGEST_VERSION
            and (entry / GRAPH_FILE).is_file()
        }
        missing = policy.missing_versions(self._policy, found)
        if missing:
            self._warn(
                f"versions {missing} of {self.name}, named by its policy, aren't in"
                f" {self.base_path}; waiting for them"
            )
        elif not found:
            self._warn(
                f"no versions of {self.name} in {self.base_path} (directories named by a number,"
                f" with a {GRAPH_FILE}); waiting for one"
            )
        else:
            self._warned = ""
        return found

    def _warn(self, text: str) -> None:
        if text != self._warned:
            logging.warning(text)
            self._warned = text

    def _ensure_loaded(self, number: int, path: pathlib.Path) -> None:
        if self.is_available(number):
            return
        retries = self._retries.count
        failure = self._failures.get(number)
        if failure and _fingerprint(path) == failure.files:
            if not failure.retries or time.monotonic() < failure.retry_at:
                return
            retries = failure.retries - 1
        version = Version(number, str(path))
        # A new dictionary, so that readers on other threads never see one change under them.
        self._versions = {**self._versions, number: version}
        files = _fingerprint(path)
        version.load(self._options)
        if version.error:
            retry_at = time.monotonic() + self._retries.interval
            self._failures[number] = _Failure(files, retries, retry_at)
        else:
            self._failures.pop(number, None)

    def _unload(self, keep: Container[int]) -> None:
        for version in list(self._versions.values()):
            if version.number not in keep and version.state == State.AVAILABLE:
                version.unload()


def not_found(name: str, number: int | None) -> errors.ServingError:
    """No such model or version is available, in TF Serving's words (manager.h)."""
    wanted = f"Latest({name})" if number is None else f"Specific({name}, {number})"
    return errors.ServingError(
        grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {wanted}"
    )


def _fingerprint(path: pathlib.Path) -> frozenset:
    """Changes when any file below does; empty while they are being replaced."""
    try:
        stats = [(file, file.stat()) for file in path.rglob("*") if file.is_file()]
    except FileNotFoundError:  # Gone between being listed and being looked at.
        return frozenset()
    return frozenset((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats)
