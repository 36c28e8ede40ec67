"""One process of a local cluster: started at one address, as often as it takes."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Literal

import psutil

from modules.training.cluster.config import Role

State = Literal["waiting", "starting", "running", "done", "stopped"]
_LOG_LINES = 15
_LOG_TAIL_BYTES = 16_384


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """A process as it is now. `cpu_seconds` counts all its lives and its subprocesses."""

    role: Role
    index: int
    address: str
    pid: int | None
    state: State
    restarts: int
    uptime_seconds: float
    rss_bytes: int
    cpu_seconds: float


class Process:
    """A command that can be started again. Not thread-safe but for `info`."""

    def __init__(
        self,
        role: Role,
        index: int,
        address: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: pathlib.Path,
        serves: bool,
    ):
        self.role, self.index, self.address, self.log = role, index, address, log
        self.state: State = "waiting"
        self.next_start = 0.0
        """`time.monotonic()` before which it isn't started."""
        self.died_at: float | None = None
        self.restarts = 0
        self.recent: collections.deque[float] = collections.deque()
        """When it was restarted within the restart window."""
        self._command, self._environment, self._serves = command, environment, serves
        self.faults = 0
        """Times in a row that it ended by an exception."""
        self.pid: int | None = None
        """Of its newest life, also after that."""
        self._popen: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._finished_cpu = 0.0

    @property
    def name(self) -> str:
        return f"{self.role} {self.index}"

    @property
    def alive(self) -> bool:
        return self._popen is not None

    @property
    def lived(self) -> float:
        """Seconds of its last life, after it died."""
        return self.died_at - self._started_at if self.died_at is not None else 0.0

    def start(self) -> None:
        """Starts the command in a session of its own, its output appended to the log.

        Raises:
          OSError: there is no such command, or the log can't be opened.
        """
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid, self._started_at = self._popen.pid, time.monotonic()
        self.state = "starting" if self._serves else "running"

    def became_ready(self) -> bool:
        """True once for every start of a server: when it answers at its address."""
        if self.state != "starting":
            return False
        host, port = self.address.rsplit(":", 1)
        try:
            socket.create_connection((host, int(port)), timeout=0.2).close()
        except OSError:
            return False
        self.state = "running"
        return True

    def death(self) -> int | None:
        """Its exit code (negative: a signal) if it died since the last call, else None."""
        if self._popen is None:
            return None
        pid = self._popen.pid
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # Its own subprocesses go with it, while the dead process still keeps the group's number.
        os.killpg(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        self._finished_cpu += usage.ru_utime + usage.ru_stime
        code = self._popen.returncode
        self._popen = None
        self.died_at = time.monotonic()
        return code

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process and its subprocesses, if it runs."""
        if self._popen is not None:
            os.killpg(self._popen.pid, number)

    def info(self) -> ProcessInfo:
        """What it uses now (any thread may ask)."""
        pid = self.pid if self.alive else None
        rss, cpu = 0, self._finished_cpu
        for process in _family(pid) if pid is not None else ():
            try:
                rss += process.memory_info().rss
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            cpu += times.user + times.system
        return ProcessInfo(
            role=self.role,
            index=self.index,
            address=self.address,
            pid=pid,
            state=self.state,
            restarts=self.restarts,
            uptime_seconds=time.monotonic() - self._started_at if pid is not None else 0.0,
            rss_bytes=rss,
            cpu_seconds=cpu,
        )

    def last_lines(self) -> str:
        """The end of its log, indented."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(f"  {line}" for line in lines) or "  (empty)"


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def how_it_died(code: int) -> str:
    """In words, from a `returncode`."""
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal_name(code)}"


def signal_name(code: int) -> str:
    """`SIGKILL`, from a `returncode` below 0."""
    return signal.Signals(-code).name
