"""Waiting for a server process, and running one that is to stop by itself."""

import subprocess
import sys
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.02)


def run_server(*flags: str) -> subprocess.CompletedProcess:
    command_line = [sys.executable, "-m", "serving.server", *flags]
    return subprocess.run(command_line, capture_output=True, text=True, timeout=30)
