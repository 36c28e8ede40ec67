"""Faults, injected for real into a training run. Needs root, and namespaces (`isolated`)."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil

from benchmarks.training.disturbed import Training
from modules.training.cluster.config import Role

STOPPED_SECONDS = 60.0
CUT_SECONDS = 30.0
FULL_SECONDS = 25.0
DISK_BYTES = 192 << 20
_ISOLATED = "FAULTS_ISOLATED"
_CUT_POLL_SECONDS = 0.1


class Victim(NamedTuple):
    """The process that a fault strikes."""

    role: Role
    index: int


def isolated(arguments: list[str]) -> None:
    """Goes on in network and mount namespaces of its own, gone with this process.

    Raises:
      PermissionError: this user may not make them.
    """
    if _ISOLATED not in os.environ:
        os.environ[_ISOLATED] = "1"
        command = ["unshare", "--net", "--mount", sys.executable, *arguments]
        if os.geteuid():
            raise PermissionError("faults need root: they cut networks and fill disks")
        os.execvp(command[0], command)
    _ip("link set lo up")
    for family in ("-4", "-6"):
        # Rules of ours go before the one that finds this machine's own addresses.
        _ip(f"{family} rule add pref 100 lookup local")
        _ip(f"{family} rule del pref 0")


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[None]:
    """A real file system of DISK_BYTES at `folder`."""
    folder.mkdir(parents=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(folder))


@contextlib.contextmanager
def filled(folder: pathlib.Path) -> Iterator[None]:
    """No byte is left on the folder's (small) disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


def kill(training: Training, victim: Victim) -> None:
    """`kill -9`."""
    os.kill(training.pid(*victim), signal.SIGKILL)


def stop(training: Training, victim: Victim) -> None:
    """SIGSTOP, and SIGCONT after STOPPED_SECONDS."""
    pid = training.pid(*victim)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # it was ended meanwhile
        os.kill(pid, signal.SIGCONT)


def cut(training: Training, victim: Victim) -> None:
    """For CUT_SECONDS the kernel drops every TCP packet to or from the process, silently.

    By routing rules on the local ports that it has, listening or connected.
    """
    pid, closed = training.pid(*victim), set[int]()
    deadline = time.monotonic() + CUT_SECONDS
    try:
        while time.monotonic() < deadline:
            for port in _ports(pid) - closed:
                _drop("add", port)
                closed.add(port)
            time.sleep(_CUT_POLL_SECONDS)
    finally:
        for port in closed:
            _drop("del", port)


def full_disk(training: Training, victim: Victim) -> None:
    """For FULL_SECONDS no byte is left where the run is written: events and history are too."""
    with filled(training.state):
        time.sleep(FULL_SECONDS)
    training.wait_for("checkpoint_failed")


def truncate(training: Training, victim: Victim) -> None:
    """Half of a shard of the newest checkpoint goes: the victim's, which is killed."""
    training.wait_for("checkpoint_saved", 2)
    newest = max(training.state.glob("*/checkpoints/step-*"))
    pattern = f"tables/*/{victim.index}-of-*/*.data-*" if victim.role == "ps" else "dense.data-*"
    shard = max(newest.glob(pattern), key=lambda path: path.stat().st_size)
    os.truncate(shard, shard.stat().st_size // 2)
    kill(training, victim)


FAULTS: dict[str, Callable[[Training, Victim], None]] = {
    "kill -9": kill,
    "SIGSTOP 60 s": stop,
    "network cut 30 s": cut,
    "full disk 25 s": full_disk,
    "truncated shard + kill -9": truncate,
}


def _ports(pid: int) -> set[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return {c.laddr.port for c in psutil.Process(pid).net_connections("tcp")}
    return set()


def _drop(change: str, port: int) -> None:
    for family in ("-4", "-6"):
        for side in ("sport", "dport"):
            _ip(f"{family} rule {change} pref 50 ipproto tcp {side} {port} blackhole")


def _ip(command: str) -> None:
    _run("ip", *command.split())


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
