"""A cluster that trains when it is told to, measured from outside.

Several may be up at once and take turns, so that whatever else the machine does meets all alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from modules.training.cluster.config import Cluster
from modules.training.cluster.supervisor import Supervisor

PLACED = "benchmarks.training.placed"
_PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.5
_SENT = re.compile(r"\bbytes_sent:(\d+)")
_OWNER = re.compile(r"\bpid=(\d+),")


@dataclasses.dataclass(frozen=True)
class Turn:
    """What some steps cost.

    Attributes:
      seconds: wall time.
      cpu_seconds: by role, of all its processes.
      bytes_sent: over TCP by all processes: what crossed the network, counted once.
      report: what the trainer itself says of it.
    """

    steps: int
    seconds: float
    cpu_seconds: dict[str, float]
    bytes_sent: int
    report: dict[str, Any]

    @property
    def cpu(self) -> float:
        return sum(self.cpu_seconds.values())


class Contestant(contextlib.AbstractContextManager):
    """Args:
    module: what the chief runs: `PLACED`, or another that talks alike (`commands.py`).
    cluster: of processes of this machine. None is restarted.
    problem: sizes, of `problem.Problem`.
    folder: for logs.
    environment: added to every process's.
    """

    def __init__(
        self,
        name: str,
        module: str,
        cluster: Cluster,
        problem: Mapping[str, int],
        folder: pathlib.Path,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ):
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / f"{name}.socket"))
        self._trainers = sum(map(cluster.count, cluster.trainer_roles))
        self._socket.listen(self._trainers)
        command = [
            *(sys.executable, "-W", "ignore", "-m", module),
            f"--socket={folder / name}.socket",
            f"--cluster={cluster.model_dump_json(exclude_unset=True)}",
            f"--problem={json.dumps(dict(problem))}",
            *arguments,
        ]
        once = cluster.model_copy(update={"max_restarts": 0})
        self._supervisor = Supervisor(
            once, folder / name, {"chief": command}, environment=environment, grace_seconds=0.0
        )
        self._started = 0.0

    def __enter__(self) -> Contestant:
        self._started = time.monotonic()
        self._supervisor.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._supervisor.__exit__()
        self._socket.close()

    def wait_until_ready(self) -> dict[str, Any]:
        """Waits until the first steps are done. Returns what the trainer says then, and `seconds`
        since its processes were started.

        Raises:
          ClusterFailed: a process died. Says which one, and the end of its log.
          TimeoutError: nothing came.
        """
        self._connections = [
            self._patiently(self._socket, lambda: self._socket.accept()[0])
            for _ in range(self._trainers)
        ]
        self._lines = [connection.makefile("rw") for connection in self._connections]
        return self._answer() | {"seconds": time.monotonic() - self._started}

    def train(self, steps: int) -> Turn:
        """Trains on the next batches."""
        cpu, sent = self._cpu_seconds(), self._bytes_sent()
        started = time.perf_counter()
        for lines in self._lines:
            lines.write(f"{steps}\n")
            lines.flush()
        report = self._answer()
        seconds = time.perf_counter() - started
        spent = {role: after - cpu[role] for role, after in self._cpu_seconds().items()}
        return Turn(steps, seconds, spent, self._bytes_sent() - sent, report)

    def rss_bytes(self) -> dict[str, int]:
        """Resident memory by role."""
        return self._by_role("rss_bytes")

    def _cpu_seconds(self) -> dict[str, float]:
        return self._by_role("cpu_seconds")

    def _by_role(self, field: str) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        for process in self._supervisor.processes():
            sums[process.role] = sums.get(process.role, 0) + getattr(process, field)
        return sums

    def _bytes_sent(self) -> int:
        pids = {process.pid for process in self._supervisor.processes()}
        listed = subprocess.run(
            ["ss", "-tinpHO"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        return sum(
            int(sent.group(1))
            for line in listed
            if (sent := _SENT.search(line)) and pids & {int(p) for p in _OWNER.findall(line)}
        )

    def _answer(self) -> dict[str, Any]:
        """Of every trainer; what one of them says."""
        for connection, lines in zip(self._connections, self._lines, strict=True):
            line = self._patiently(connection, lines.readline)
            if not line:  # it is dying: the supervisor knows how
                self._supervisor.wait(_PATIENCE_SECONDS)
        return json.loads(line)

    def _patiently(self, waited_for: socket.socket, act: Any) -> Any:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not select.select([waited_for], [], [], _POLL_SECONDS)[0]:
            if self._supervisor.ended:
                self._supervisor.wait()
                raise ChildProcessError(f"{self.name}: its trainer ended")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: silent for {_PATIENCE_SECONDS:.0f} s")
        return act()


def in_turns(
    contestants: Sequence[Contestant], steps: Mapping[str, int], rounds: int
) -> tuple[dict[str, list[Turn]], dict[str, dict[str, Any]]]:
    """Runs them all, `steps` of each a turn. Their turns, and what they said when ready."""
    turns: dict[str, list[Turn]] = {contestant.name: [] for contestant in contestants}
    with contextlib.ExitStack() as running:
        for contestant in contestants:
            running.enter_context(contestant)
        ready = {contestant.name: contestant.wait_until_ready() for contestant in contestants}
        for _ in range(rounds):
            for contestant in contestants:
                turn = contestant.train(steps[contestant.name])
                turns[contestant.name].append(turn)
                done = f"{turn.steps} steps in {turn.seconds:.1f} s"
                print(f"{contestant.name}: {done}", file=sys.stderr)
    return turns, ready
