"""The one writer of a Redis store, and what it may do there.

A lock in Redis is lost when its holder is held up for longer than it lasts, and the holder can't
know. So every change is a script that looks first whether the lock is still its writer's, and
makes it last anew: nothing can come between (a fence).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.exceptions import LockNotOwnedError

from serving.knowledge.failures import unavailable

# KEYS: the lock, others. ARGV: the lock's token and its milliseconds, others.
_FENCE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# ARGV: a command.
_RUN = (
    _FENCE
    + """
redis.call(unpack(ARGV, 3))
return 0
"""
)

_DELETE = (
    _FENCE
    + """
return redis.call('DEL', unpack(KEYS, 2))
"""
)

_WALK = """
local function next_record(value, at)
  return at + 16 + struct.unpack('<I4', value, at + 8)
end
"""

# KEYS and their records: appends; returns the place of a key that has the version already, or 0.
_APPEND = (
    _FENCE
    + _WALK
    + """
for i = 2, #KEYS do
  local key, record = KEYS[i], ARGV[i + 1]
  local value, at, last = redis.call('GET', key) or '', 1, ''
  while at <= #value do
    last = string.sub(value, at, at + 7)
    at = next_record(value, at)
  end
  if last == string.sub(record, 1, 8) then return i - 1 end
  redis.call('APPEND', key, record)
end
return 0
"""
)

# KEYS, and the versions to keep: removes the records of all others.
_STRIP = (
    _FENCE
    + _WALK
    + """
local kept = {}
for i = 3, #ARGV do kept[ARGV[i]] = true end
for i = 2, #KEYS do
  local key = KEYS[i]
  local value, at, parts = redis.call('GET', key) or '', 1, {}
  while at <= #value do
    local after = next_record(value, at)
    if kept[string.sub(value, at, at + 7)] then
      parts[#parts + 1] = string.sub(value, at, after - 1)
    end
    at = after
  end
  local left = table.concat(parts)
  if left == '' then redis.call('DEL', key)
  elseif left ~= value then redis.call('SET', key, left) end
end
return 0
"""
)


class Writer:
    """Made by `writing`. Every method raises `LockNotOwnedError`, and changes nothing, once the
    lock is lost.
    """

    def __init__(self, client: Any, lock: str, token: bytes, seconds: float):
        self._client = client
        self._lock = lock
        self._token = token
        self._seconds = seconds

    def run(self, *command: bytes | str | int) -> None:
        """Carries out a command of Redis, of at most a few thousand words."""
        self._fenced(_RUN, (), command)

    def delete(self, names: Sequence[bytes]) -> int:
        """Deletes keys; returns how many there were."""
        return self._fenced(_DELETE, names, ())

    def append(self, names: Sequence[bytes], packed: Sequence[bytes]) -> bool:
        """Appends a record to each key; False, and stops, at one that has the version already."""
        return self._fenced(_APPEND, names, packed) == 0

    def strip(self, names: Sequence[bytes], versions: Sequence[bytes]) -> None:
        """Removes the records of all but these versions."""
        self._fenced(_STRIP, names, versions)

    def _fenced(self, script: str, names: Sequence[bytes], arguments: Sequence[Any]) -> int:
        done = self._client.register_script(script)(
            [self._lock, *names], [self._token, int(self._seconds * 1000), *arguments]
        )
        if done == -1:
            raise LockNotOwnedError(
                f"this writer was held up for more than {self._seconds:g} s and lost its lock;"
                " look which versions there are, and try again"
            )
        return done


@contextlib.contextmanager
def writing(client: Any, lock: str, seconds: float) -> Iterator[Writer]:
    """One writer at a time, among all processes.

    Args:
      client: a `redis.Redis`.
      lock: the name of its key.
      seconds: a writer that does nothing for so long loses the lock.

    Raises:
      errors.ServingError: UNAVAILABLE, another writer held it for twice as long.
    """
    held = client.lock(lock, timeout=seconds, blocking_timeout=2 * seconds)
    if not held.acquire():
        raise unavailable("another writer is at work on this store; try again later")
    try:
        yield Writer(client, lock, held.local.token, seconds)
    finally:
        with contextlib.suppress(redis.RedisError):  # the first error is the one to tell
            held.release()
