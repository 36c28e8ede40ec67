"""Waiting for SIGTERM beside threads that were there before, as a library's are."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import os, signal, threading, time
from serving.rpc.stopping import stop_signals
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
stopping = stop_signals()
for _ in range(3):
    os.kill(os.getpid(), signal.{name})
time.sleep(0.1)  # nobody waits yet
stopping.recv(1)
print("stopped", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_anyone_waits_is_neither_lost_nor_deadly(name):
    command = [sys.executable, "-c", PROGRAM.format(name=name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
