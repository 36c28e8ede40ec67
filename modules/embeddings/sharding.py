"""Where the rows of a large table are: row r in shard r % n, as its row r // n.

Row numbers are hashes or ranks by frequency, so that every shard gets its part of the frequent
rows, which cutting the table into ranges wouldn't do.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

ShardCount = Callable[[int, int], int]
"""(rows, dim) -> shards that this process makes variables for; 0: another process has them."""

_shard_count: contextvars.ContextVar[ShardCount] = contextvars.ContextVar(
    "shard_count", default=lambda rows, dim: 1
)


@contextlib.contextmanager
def sharded_by(count: ShardCount) -> Iterator[None]:
    """Large tables made inside have `count(rows, dim)` shards."""
    token = _shard_count.set(count)
    try:
        yield
    finally:
        _shard_count.reset(token)


def num_shards(num_rows: int, dim: int) -> int:
    """Shards of a table that is being made; one unless `sharded_by` says otherwise."""
    return _shard_count.get()(num_rows, dim)
