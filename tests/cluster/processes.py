"""Cheap stand-ins for trainers and servers, and waiting for what they do."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable

import psutil

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

SERVER = """
import json, os, socket, time
config = json.loads(os.environ["TF_CONFIG"])
task = config["task"]
port = int(config["cluster"][task["type"]][task["index"]].rsplit(":", 1)[1])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("", port))
listener.listen()
while True:
    listener.accept()[0].close()
"""


def python(code: str) -> list[str]:
    """The command that runs it."""
    return [sys.executable, "-c", code]


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Waits for it; the limit is only there to end a broken test."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


def until_written(path: pathlib.Path) -> str:
    """What a process wrote to a file, once it's there."""
    until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path} written")
    return path.read_text()


def runs(pid: int) -> bool:
    """Whether there is such a process, and it isn't a zombie that nobody reaped yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
