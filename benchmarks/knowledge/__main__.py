"""CPU time of a batch from the knowledge centre's stores, beside a dict of arrays.

    python -m benchmarks.knowledge [--users 500000] [--dim 64] [--batch 1000] [--versions 1]

Random users with vectors of `dim` floats, of which a batch is asked by their text ids; then
batches of quadruples (user, item, category). Milliseconds of CPU a batch, median of 200: the
calling thread's and, for Redis, the redis-server process's beside it (its mean).
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil

from serving.knowledge import MappedStore, Store, lookup
from serving.knowledge.redis_store import RedisStore
from serving.knowledge.store import Rows, item_rows, user_category_rows, user_rows

BATCHES = 200
ITEMS, CATEGORIES = 10_000, 50
CHUNK = 20_000


@contextlib.contextmanager
def redis_server(folder: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server on a unix socket that writes nothing to disk; its address and process."""
    path = pathlib.Path(folder, "redis.sock")
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""]
    process = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
    try:
        while not path.exists():
            time.sleep(0.05)
        yield f"unix://{path}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(process: psutil.Process | None) -> float:
    if process is None:
        return 0.0
    times = process.cpu_times()
    return times.user + times.system


def measure(
    ask: Callable[[dict], object], questions: list[dict], server: psutil.Process | None
) -> tuple[float, float]:
    """Milliseconds of CPU a batch: of this thread (median) and of the server (mean)."""
    for question in questions[:10]:
        ask(question)
    taken, before = [], cpu_seconds(server)
    for question in questions:
        start = time.thread_time()
        ask(question)
        taken.append(time.thread_time() - start)
    return 1e3 * float(np.median(taken)), 1e3 * (cpu_seconds(server) - before) / BATCHES


def rows(users: list[str], vectors: np.ndarray, items: list[str]) -> Iterator[Rows]:
    for start in range(0, len(users), CHUNK):
        piece = slice(start, start + CHUNK)
        categories = [f"c{i % CATEGORIES}" for i in range(start, start + len(users[piece]))]
        yield user_rows(users[piece], vectors[piece])
        yield user_category_rows(users[piece], categories, vectors[piece])
    yield item_rows(items, vectors[: len(items)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1_000)
    parser.add_argument("--versions", type=int, default=1, help="published, 1 to 5")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    users = [f"user-{i}" for i in rng.permutation(args.users) * 7_919]
    items = [f"item-{i}" for i in range(min(ITEMS, args.users))]
    vectors = rng.standard_normal((args.users, args.dim), np.float32)

    picks = [rng.integers(0, args.users, args.batch) for _ in range(BATCHES)]
    columns = [
        {
            "users": [users[i] for i in pick],
            "items": [items[i % len(items)] for i in pick],
            "categories": [f"c{i % CATEGORIES}" for i in pick],
        }
        for pick in picks
    ]
    questions = {
        "users": [{"users": each["users"]} for each in columns],
        "quadruples, all users different": columns,
        "quadruples, one user's candidates": [
            each | {"users": [each["users"][0]] * args.batch} for each in columns
        ],
    }

    def line(name: str, ask: Callable, asked: list[dict], server: psutil.Process | None) -> None:
        mine, theirs = measure(ask, asked, server)
        print(f"{name:<42}{mine:>9.2f}{theirs:>9.2f}{mine + theirs:>9.2f}", flush=True)

    print(f"{args.users:,} users x {args.dim}, batch {args.batch}, {args.versions} version(s)")
    print(f"{'CPU ms a batch':<42}{'caller':>9}{'server':>9}{'both':>9}")
    reference = dict(zip(users, vectors, strict=True))

    def ask_dict(question: dict) -> np.ndarray:
        return np.stack([reference[user] for user in question["users"]])

    line("users: dict of arrays", ask_dict, questions["users"], None)
    with tempfile.TemporaryDirectory() as folder, redis_server(folder) as (url, process):
        stores: dict[str, tuple[Store, psutil.Process | None]] = {
            "mmap": (MappedStore(pathlib.Path(folder, "store")), None),
            "Redis": (RedisStore(url), process),
        }
        for name, (store, server) in stores.items():
            start = time.process_time()
            for version in range(1, args.versions + 1):
                store.publish(version, rows(users, vectors, items))
            for question, asked in questions.items():
                line(f"{question}: {name}", lambda q, s=store: lookup(s, **q), asked, server)
            print(f"  publishing took {time.process_time() - start:.1f} s CPU of the writer")


if __name__ == "__main__":
    main()
