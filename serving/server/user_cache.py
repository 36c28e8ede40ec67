"""One user, many candidates: a user seen a moment ago isn't encoded again.

The split is the model's own (`contract.Users`). A cache belongs to one version of a model and goes
when that does.
"""

from __future__ import annotations

import collections
import hashlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from serving.server import example_wire
from serving.server.contract import EMBEDDING, EXAMPLES, Users

Run = Callable[[str, Mapping[str, np.ndarray], Sequence[str], float], dict[str, np.ndarray]]

_USER_ID = b"user_id"
MAX_ROWS = 8
"""Larger requests are passed on: all of their users would have to be known at once."""


class UserCache:
    """The embeddings of the users seen last. Thread-safe.

    Attributes:
      signature: the signature whose requests it answers.
      hits: rows answered from a kept embedding.
      misses: rows whose user was encoded. (Rows that can't be split count as neither.)
    """

    def __init__(self, users: Users, run: Run, size: int, seconds: float):
        """
        Args:
          users: the model's split.
          run: `(signature, inputs, outputs, deadline) -> outputs`.
          size: embeddings kept; the least recently used goes first.
          seconds: how long one is kept.
        """
        self.hits = 0
        self.misses = 0
        self.signature = users.signature
        self._users = users
        self._run = run
        self._embeddings = _Embeddings(size, seconds)
        self._lock = threading.Lock()
        self._key_features = _encoded(users.user_features) | {_USER_ID}
        self._dropped_features = _encoded(users.user_features - users.tower_features)
        self._bypass = _encoded(users.bypass)

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], deadline: float
    ) -> dict[str, np.ndarray]:
        """Answers a request to `users.signature`.

        Args:
          inputs: `examples`: serialized tf.Examples, `bytes` objects [B].

        Raises:
          errors.ServingError: as the model's signatures do.
        """
        rows = self._entries(inputs[EXAMPLES])
        if rows is None:
            return self._run(self._users.signature, inputs, outputs, deadline)
        keys = list(map(self._key, rows))
        kept = self._embeddings.get(keys)
        self._count(len(keys), hit=kept is not None)
        if kept is not None:
            scored = {EXAMPLES: self._without_history(rows), EMBEDDING: kept}
            return self._run(self._users.score, scored, outputs, deadline)
        wanted = tuple(dict.fromkeys([*outputs, EMBEDDING]))
        answer = self._run(self._users.encode, inputs, wanted, deadline)
        self._embeddings.put(keys, answer[EMBEDDING])
        return {name: answer[name] for name in outputs}

    def _entries(self, examples: np.ndarray) -> list[dict[bytes, bytes]] | None:
        """Each row's features, by name; None: not a request to be split."""
        if examples.ndim != 1 or not 0 < examples.size <= MAX_ROWS:
            return None
        rows = []
        for serialized in examples.tolist():
            entries = example_wire.entries(serialized)
            if entries is None or self._bypasses(entries):
                return None
            rows.append(entries)
        return rows

    def _key(self, entries: Mapping[bytes, bytes]) -> bytes:
        """A hash of all that the row's embedding depends on, and of whose it is.

        Entries say themselves where they end, so that no two sets of them join to the same bytes.
        """
        user = sorted(entries[name] for name in self._key_features & entries.keys())
        return hashlib.blake2b(b"".join(user), digest_size=16).digest()

    def _without_history(self, rows: Sequence[Mapping[bytes, bytes]]) -> np.ndarray:
        """What the towers need, as examples [B]."""
        examples = np.empty(len(rows), object)
        for row, entries in enumerate(rows):
            examples[row] = example_wire.serialized(
                entry for name, entry in entries.items() if name not in self._dropped_features
            )
        return examples

    def _bypasses(self, entries: Mapping[bytes, bytes]) -> bool:
        return any(
            name in entries and not example_wire.is_empty(entries[name]) for name in self._bypass
        )

    def _count(self, rows: int, *, hit: bool) -> None:
        with self._lock:
            if hit:
                self.hits += rows
            else:
                self.misses += rows


def _encoded(names: Collection[str]) -> set[bytes]:
    return {name.encode() for name in names}


class _Embeddings:
    """Key -> float array [D], for a time; the least recently used go first."""

    def __init__(self, size: int, seconds: float):
        self._size = size
        self._seconds = seconds
        self._kept: collections.OrderedDict[bytes, tuple[float, np.ndarray]] = (
            collections.OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> np.ndarray | None:
        """[B, D], or None unless all are there."""
        now = time.monotonic()
        with self._lock:
            found = [self._kept.get(key, (0.0, None)) for key in keys]
            if any(row is None or until < now for until, row in found):
                return None
            for key in keys:
                self._kept.move_to_end(key)
        return np.stack([row for _, row in found if row is not None])

    def put(self, keys: Sequence[bytes], embeddings: np.ndarray) -> None:
        until = time.monotonic() + self._seconds
        with self._lock:
            for key, row in zip(keys, embeddings, strict=True):
                self._kept[key] = (until, row.copy())  # a view would keep its whole batch
                self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
