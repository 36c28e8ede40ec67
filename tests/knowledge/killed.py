"""`python -m tests.knowledge.killed STORE ACTION N`: kills itself, as `kill -9` would.

ACTION `publish`: in the middle of the rows (N 0), or when the N-th file is to be synced to disk.
ACTION `delete`: when the N-th file is to be synced.
"""

import itertools
import os
import signal
import sys

import numpy as np

from serving.knowledge import MappedStore, manifest
from serving.knowledge.redis_store import RedisStore
from serving.knowledge.store import user_category_rows, user_rows


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _rows(killed_within: bool):
    for start in range(0, 3000, 1000):
        users = [f"u{i}" for i in range(start, start + 1000)]
        vectors = np.full((1000, 4), 2, np.float32)
        yield user_rows(users, vectors)
        yield user_category_rows(users, ["c"] * 1000, vectors)
        if killed_within:
            _die()


def main(location: str, action: str, moment: int) -> None:
    if "://" in location:
        url, prefix = location.rsplit("#", 1)
        store = RedisStore(url, prefix=prefix, lock_seconds=0.5)
    else:
        store = MappedStore(location)
    calls, sync = itertools.count(1), manifest.sync

    def dying_sync(path) -> None:
        if next(calls) == moment:
            _die()
        sync(path)

    manifest.sync = dying_sync
    if action == "publish":
        store.publish(2, _rows(killed_within=not moment))
    else:
        store.delete_user("u7")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
