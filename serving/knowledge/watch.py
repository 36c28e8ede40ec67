"""Looks again and again which versions a store has, and tells the log and whoever asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from serving import errors
from serving.knowledge.mapped_store import MappedStore
from serving.knowledge.store import Store


class Watch:
    """For one thread at a time."""

    def __init__(self, store: Store, tell: Callable[[bool], None]):
        """
        Args:
          tell: called after each look, with whether there is a version to answer from.
        """
        self._store = store
        self._tell = tell
        self._seen: tuple[int, ...] | None = None
        self._problems: set[str] = set()

    def run(self, interval: float) -> None:
        """Looks every `interval` seconds, for ever."""
        while True:
            time.sleep(interval)
            self.look()

    def look(self) -> None:
        """Picks up what other processes published; one line in the log for each change."""
        versions, problems = self._look()
        for problem in sorted(problems - self._problems):
            logging.error("%s", problem)
        if versions != self._seen:
            logging.info("versions: %s", ", ".join(map(str, versions)) or "none")
        self._seen, self._problems = versions, problems
        self._tell(bool(versions))

    def _look(self) -> tuple[tuple[int, ...], set[str]]:
        """The versions there are, and what is wrong."""
        try:
            if not isinstance(self._store, MappedStore):
                return self._store.versions(), set()
            self._store.refresh()
            damaged = self._store.damaged().items()
            return self._store.versions(), {f"version {v} can't be served: {e}" for v, e in damaged}
        except errors.ServingError as error:
            return (), {f"no version can be served: {error}"}
