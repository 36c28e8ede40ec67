"""A real Redis server, and both stores behind one fixture."""

import shutil
import subprocess
import time
import uuid

import pytest
import redis

from serving.knowledge import MappedStore
from serving.knowledge.redis_store import RedisStore


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    """A server of this session's own on a unix socket, which dumps to its directory."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server isn't installed: apt-get install redis-server")
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--dir", str(folder)]
    process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        url = f"unix://{path}"
        deadline = time.monotonic() + 20
        while not _answers(url):
            assert process.poll() is None, "redis-server stopped"
            assert time.monotonic() < deadline, "redis-server doesn't answer"
            time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return redis.Redis.from_url(url).ping()
    except redis.ConnectionError:
        return False


@pytest.fixture(params=["mapped", "redis"])
def new_store(request, tmp_path):
    """Makes instances of one empty store, each as another process would have it."""
    if request.param == "mapped":
        return lambda **options: MappedStore(tmp_path / "store", **options)
    url, prefix = request.getfixturevalue("redis_url"), uuid.uuid4().hex
    return lambda **options: RedisStore(url, prefix=prefix, **options)
