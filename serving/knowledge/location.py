"""Where a store is, as one text."""

from __future__ import annotations

import os

from serving.knowledge.mapped_store import MappedStore
from serving.knowledge.store import MAX_VERSIONS, Store


def open_store(location: str, *, keep: int = MAX_VERSIONS, dtype: str = "float32") -> Store:
    """The store of a directory (`MappedStore`) or a Redis address (`RedisStore`).

    Args:
      location: a path, or `redis://host:port/db`, `rediss://…`, `unix:///path/of.sock`.

    Raises:
      errors.ServingError: INVALID_ARGUMENT.
    """
    if _is_address(location):
        from serving.knowledge.redis_store import RedisStore  # only who uses Redis needs its client

        return RedisStore(location, keep=keep, dtype=dtype)
    return MappedStore(location, keep=keep, dtype=dtype)


def is_missing(location: str) -> bool:
    """Whether it is a directory that no `publish` has made yet."""
    return not _is_address(location) and not os.path.exists(location)


def _is_address(location: str) -> bool:
    return "://" in location
