"""What Redis adds: one round trip, killed writers, what is left in it, its absence."""

import dataclasses
import pathlib
import signal
import subprocess
import sys
import uuid

import grpc
import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from serving import errors
from serving.knowledge import keys, lookup, records
from serving.knowledge.redis_store import RedisStore
from serving.knowledge.store import item_rows, user_category_rows, user_rows

ROOT = pathlib.Path(__file__).parents[2]
USERS = [f"u{i}" for i in range(3000)]


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def store(redis_url, prefix) -> RedisStore:
    return RedisStore(redis_url, prefix=prefix, lock_seconds=0.5)


def _publish(store: RedisStore, version: int) -> None:
    store.publish(version, [user_rows(USERS, np.full((len(USERS), 4), version, np.float32))])


def test_a_batch_is_one_command(store, redis_url):
    vectors = np.ones((2, 4), np.float32)
    pairs = user_category_rows(["a", "b"], ["c", "c"], vectors)
    store.publish(1, [user_rows(["a", "b"], vectors), item_rows(["i", "j"], vectors), pairs])
    watching = redis.Redis.from_url(redis_url)
    before = watching.info("commandstats")
    lookup(store, users=["a", "b"], items=["i", "j"], categories=["c", "c"])
    after = watching.info("commandstats")
    calls = {
        name: stats["calls"] - before.get(name, {"calls": 0})["calls"]
        for name, stats in after.items()
    }
    assert {name: n for name, n in calls.items() if n} == {"cmdstat_mget": 1, "cmdstat_info": 1}


def test_a_killed_writer_leaves_the_old_version_served(store, redis_url, prefix):
    _publish(store, 1)
    location = f"{redis_url}#{prefix}"
    command = [sys.executable, "-m", "tests.knowledge.killed", location, "publish", "0"]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    answer = lookup(store, users=USERS)
    assert answer.version == 1
    assert answer.found["user"].all() and (answer.vectors["user"] == 1).all()
    assert _bytes_of(redis_url, prefix).count(records.version_bytes(2)) > 1000
    # The dead writer's version may even be published anew: its records are swept first.
    _publish(store, 2)
    assert (lookup(store, users=USERS).vectors["user"] == 2).all()
    assert _bytes_of(redis_url, prefix).count(records.version_bytes(2)) == len(USERS)


def test_a_dropped_version_leaves_nothing(store, redis_url, prefix):
    for version in range(1, 8):
        _publish(store, version)
    left = _bytes_of(redis_url, prefix)
    assert [left.count(records.version_bytes(v)) for v in (1, 2, 3, 7)] == [0, 0, 3000, 3000]


def test_an_erased_users_bytes_are_in_neither_memory_nor_dump(store, redis_url, prefix):
    vectors = np.random.default_rng(2).standard_normal((len(USERS), 4), np.float32)
    for version in (1, 2):
        pairs = user_category_rows(USERS, ["c"] * len(USERS), vectors[:, ::-1] * version)
        store.publish(version, [user_rows(USERS, vectors * version), pairs])
    user = keys.of_ids(["u7"])
    pair = keys.of_pairs(user, keys.of_categories(["c"]))
    secrets = [f"{prefix}:user:".encode() + user.tobytes()]
    secrets += [f"{prefix}:user_category:".encode() + pair.tobytes()]
    secrets += [(vectors[7, ::step] * version).tobytes() for version in (1, 2) for step in (1, -1)]

    def holds(content: bytes) -> list[bool]:
        return [secret in content for secret in secrets]

    server = redis.Redis.from_url(redis_url)
    server.config_set("rdbcompression", "no")
    dump = pathlib.Path(server.config_get("dir")["dir"], "dump.rdb")
    server.save()
    assert all(holds(_bytes_of(redis_url, prefix))) and all(holds(dump.read_bytes()))
    store.delete_user("u7")
    server.save()
    assert not any(holds(_bytes_of(redis_url, prefix))) and not any(holds(dump.read_bytes()))


def _bytes_of(url: str, prefix: str) -> bytes:
    server = redis.Redis.from_url(url)
    names = [n for n in server.scan_iter(f"{prefix}:*") if server.type(n) == b"string"]
    return b"".join(names + server.mget(names))


def test_a_second_writer_waits_and_says_so(store, redis_url, prefix):
    server = redis.Redis.from_url(redis_url)
    refused = pytest.raises(errors.ServingError, match="UNAVAILABLE: another writer")
    with server.lock(f"{prefix}:writer", timeout=60), refused:
        _publish(store, 1)
    _publish(store, 1)


@pytest.mark.parametrize("held_up", ["between rows", "after all rows", "by an error"])
def test_a_writer_that_lost_its_lock_leaves_the_next_ones_version_alone(
    store, redis_url, prefix, held_up
):
    _publish(store, 1)
    rows = user_rows(USERS, np.full((len(USERS), 4), 2, np.float32))
    half = [dataclasses.replace(rows, keys=k, vectors=v) for k, v in
            zip(np.split(rows.keys, 2), np.split(rows.vectors, 2), strict=True)]  # fmt: skip

    def slow():
        yield half[0]
        if held_up == "after all rows":
            yield half[1]
        _publish(RedisStore(redis_url, prefix=prefix, lock_seconds=0.5), 3)  # once the lock is lost
        if held_up == "by an error":
            raise InterruptedError
        if held_up == "between rows":
            yield half[1]

    with pytest.raises((errors.ServingError, InterruptedError)) as error:
        store.publish(2, slow())
    if held_up != "by an error":
        assert "UNAVAILABLE" in str(error.value) and "lost its lock" in str(error.value)
    assert store.versions() == (1, 3)
    for version in (1, 3):
        assert (lookup(store, users=USERS, version=version).vectors["user"] == version).all()
    # It left nothing, so that its version may be published anew.
    _publish(store, 2)
    assert _bytes_of(redis_url, prefix).count(records.version_bytes(2)) == len(USERS)
    assert (lookup(store, users=USERS, version=2).vectors["user"] == 2).all()


def test_no_server_is_one_clear_error(tmp_path):
    store = RedisStore(f"unix://{tmp_path}/none.sock")
    for ask in (store.versions, lambda: lookup(store, users=["u"]), lambda: _publish(store, 1)):
        with pytest.raises(errors.ServingError) as error:
            ask()
        assert error.value.code == grpc.StatusCode.UNAVAILABLE
        assert f"Redis at {tmp_path}/none.sock" in error.value.message


@pytest.mark.parametrize("url", ["http://x", "redis://h:port", "DIR"])
def test_an_address_that_is_none_is_named(url):
    with pytest.raises(errors.ServingError, match=f"INVALID_ARGUMENT: {url}"):
        RedisStore(url)


def test_a_damaged_value_is_one_clear_error(store, redis_url, prefix):
    _publish(store, 1)
    server = redis.Redis.from_url(redis_url)
    server.set(f"{prefix}:user:".encode() + keys.of_ids(["u1"]).tobytes(), b"rubbish")
    with pytest.raises(errors.ServingError, match="DATA_LOSS: .* is damaged"):
        lookup(store, users=["u1"])


RECORDS = st.dictionaries(st.integers(1, 4), st.integers(1, 5))  # version -> its width


@given(st.lists(st.none() | RECORDS, min_size=1), st.integers(1, 4), st.sampled_from("fe"))
def test_records_of_any_versions_are_told_apart(values, version, dtype):
    def packed(record):
        parts = [records.pack(v, np.full((1, d), v, dtype))[0] for v, d in record.items()]
        return b"".join(parts) or None

    dim = next((r[version] for r in values if r and version in r), 1)
    values = [r and {**r, version: dim} if r and version in r else r for r in values]
    vectors, found = records.pick(
        [packed(r) if r else None for r in values], version, np.dtype(dtype), dim
    )
    expected = [bool(r) and version in r for r in values]
    assert found.tolist() == expected
    assert (vectors == np.array(expected)[:, None] * version).all()
