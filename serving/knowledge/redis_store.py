"""The production store: Redis, one MGET a batch.

A key's versions are packed into one value (`records.py`), and the list of versions is itself read
by the batch's MGET, which Redis answers as one atomic step: no batch mixes versions, and none
sees half a switch. The list changes after all records of a new version are there, and a dropped
version's records go after the list has changed.

One primary holds all keys (an MGET across a Redis Cluster's slots isn't possible). Erasure
removes keys from memory; a dump or append-only file holds them until Redis writes it anew
(`BGSAVE`, `BGREWRITEAOF`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import redis

from serving.errors import invalid
from serving.knowledge import keys, records
from serving.knowledge.failures import corrupt, unavailable, unknown_version
from serving.knowledge.redis_writer import Writer, writing
from serving.knowledge.store import (
    KINDS,
    MAX_VERSIONS,
    USER,
    USER_CATEGORY,
    Knowledge,
    Rows,
    check_dims,
    check_keep,
    check_new,
    stored,
)

_PIECE = 500
"""Keys of one writing command: Redis answers nobody else meanwhile."""


class RedisStore:
    """A `store.Store` in Redis."""

    def __init__(
        self,
        url: str,
        *,
        keep: int = MAX_VERSIONS,
        dtype: str = "float32",
        prefix: str = "knowledge",
        timeout: float = 5.0,
        lock_seconds: float = 60.0,
    ):
        """
        Args:
          url: `redis://host:port/db`, `rediss://…` (TLS) or `unix:///path/of.sock`.
          keep: versions kept, at most `MAX_VERSIONS`.
          dtype: of vectors in Redis, float32 or float16; answers are float32.
          prefix: of all keys; letters, digits, `-` and `_`.
          timeout: seconds for connecting and for each answer.
          lock_seconds: a writer that died holds the others up no longer than this.

        Raises:
          errors.ServingError: INVALID_ARGUMENT. Nothing is sent yet.
        """
        if dtype not in ("float32", "float16"):
            raise invalid(f"vectors are stored as float32 or float16, not {dtype}")
        if not prefix.replace("-", "").replace("_", "").isalnum():
            raise invalid(f"a prefix has letters, digits, - and _, not {prefix!r}")
        try:
            # Any: redis-py's types leave open whether a command is awaited.
            self._redis: Any = redis.Redis.from_url(
                url, socket_timeout=timeout, socket_connect_timeout=timeout
            )
        except ValueError as error:
            raise invalid(f"{url}: {error}") from None
        self._keep = check_keep(keep)
        self._lock_seconds = lock_seconds
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._versions = f"{prefix}:versions".encode()
        self._categories = f"{prefix}:categories".encode()
        self._unfinished = f"{prefix}:unfinished".encode()
        self._writer = f"{prefix}:writer"
        self._heads = {kind: f"{prefix}:{kind}:".encode() for kind in KINDS}

    def versions(self) -> tuple[int, ...]:
        """As `store.Store.versions`."""
        with self._clear():
            return tuple(sorted(_parsed(self._redis.get(self._versions))))

    def get(self, wanted: Mapping[str, np.ndarray], version: int | None) -> Knowledge:
        """As `store.Store.get`; one round trip."""
        names = [self._versions]
        for kind, kind_keys in wanted.items():
            names += self._names(kind, kind_keys)
        with self._clear():
            listed, *values = self._redis.mget(names)
        known = _parsed(listed)
        version = max(known, default=None) if version is None else version
        if version not in known:
            raise unknown_version(version, known)
        dtype, dims = np.dtype(known[version]["dtype"]), known[version]["dims"]
        answers = iter(values)
        vectors, found = {}, {}
        for kind, kind_keys in wanted.items():
            of_kind = list(itertools.islice(answers, len(kind_keys)))
            try:
                vectors[kind], found[kind] = records.pick(
                    of_kind, version, dtype, dims.get(kind, 0)
                )
            except (ValueError, IndexError) as error:
                head = self._heads[kind].decode()
                raise corrupt(f"a value of {head}* is damaged: {error}") from None
        return Knowledge(version, vectors, found)

    def publish(self, version: int, chunks: Iterable[Rows]) -> None:
        """As `store.Store.publish`. Readers are held up by one piece of keys at a time."""
        with self._writing() as writer:
            known = _parsed(self._redis.get(self._versions))
            check_new(version, list(known), self._keep)
            if self._redis.exists(self._unfinished):
                self._sweep(known, writer)
            writer.run("SET", self._unfinished, version)
            try:
                dims = self._write(version, chunks, writer)
            except BaseException:
                # What stays if that fails too, the next writer sweeps.
                with contextlib.suppress(redis.RedisError):
                    self._sweep(known, writer)
                raise
            known[version] = {"dtype": self._dtype.name, "dims": dims}
            kept = {v: known[v] for v in sorted(known)[-self._keep :]}
            writer.run("SET", self._versions, json.dumps(kept))
            if len(kept) < len(known):
                self._sweep(kept, writer)
            writer.run("DEL", self._unfinished)

    def delete_user(self, user: str) -> bool:
        """As `store.Store.delete_user`."""
        user_key = keys.of_ids([user])
        with self._writing() as writer:
            members = b"".join(self._redis.smembers(self._categories))
            categories = np.frombuffer(members, "<u8").reshape(-1, 2)
            names = self._names(USER, user_key)
            names += self._names(USER_CATEGORY, keys.of_pairs(user_key, categories))
            return sum(writer.delete(piece) for piece in _pieces(names)) > 0

    def _write(self, version: int, chunks: Iterable[Rows], writer: Writer) -> dict[str, int]:
        """Appends a record to each key; returns the width of each kind."""
        dims: dict[str, int] = {}
        for chunk in chunks:
            width = dims.setdefault(chunk.kind, chunk.vectors.shape[1])
            check_dims(dims)
            if width != chunk.vectors.shape[1]:
                raise invalid(
                    f"{chunk.kind} vectors of {width} floats and of {chunk.vectors.shape[1]}"
                )
            for members in _pieces(key.tobytes() for key in chunk.category_keys):
                writer.run("SADD", self._categories, *members)
            for first in range(0, len(chunk.keys), _PIECE):
                piece = slice(first, first + _PIECE)
                packed = records.pack(version, stored(chunk.vectors[piece], self._dtype))
                if not writer.append(self._names(chunk.kind, chunk.keys[piece]), packed):
                    raise invalid(f"two rows of the {chunk.kind} vectors have the same key")
        if not dims:
            raise invalid("there are no vectors to publish")
        return dims

    def _sweep(self, kept: Iterable[int], writer: Writer) -> None:
        """Removes the records of all other versions, and what a killed writer left."""
        wanted = [records.version_bytes(version) for version in kept]
        for kind in KINDS:
            names = self._redis.scan_iter(self._heads[kind] + b"*", count=_PIECE)
            for piece in _pieces(names):
                writer.strip(piece, wanted)
        writer.run("DEL", self._unfinished)

    def _names(self, kind: str, kind_keys: np.ndarray) -> list[bytes]:
        head, raw = self._heads[kind], kind_keys.astype("<u8", copy=False).tobytes()
        return [head + raw[i : i + keys.BYTES] for i in range(0, len(raw), keys.BYTES)]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Writer]:
        with self._clear(), writing(self._redis, self._writer, self._lock_seconds) as writer:
            yield writer

    @contextlib.contextmanager
    def _clear(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            at = self._redis.connection_pool.connection_kwargs
            where = at.get("path") or f"{at.get('host')}:{at.get('port')}"
            raise unavailable(f"Redis at {where}: {error}") from None


def _parsed(listed: bytes | None) -> dict[int, dict]:
    """The list of versions: version -> its dtype and the dims of its kinds."""
    return {int(version): kind for version, kind in json.loads(listed or b"{}").items()}


def _pieces(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(names)
    while piece := list(itertools.islice(remaining, _PIECE)):
        yield piece
