"""Real parameter servers for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

from tests.repo.source_tree import ROOT


class ParameterServers:
    """Processes that tests start, stop and kill. Use as a context: it leaves none behind."""

    def __init__(self, count: int):
        self.addresses = [f"127.0.0.1:{port}" for port in _free_ports(count)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, index: int) -> None:
        task = {"type": "ps", "index": index}
        cluster = {"chief": ["127.0.0.1:1"], "ps": self.addresses}
        self._processes[index] = subprocess.Popen(
            [sys.executable, "-m", "modules.training.cluster.server", "--alone"],
            env={**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster, "task": task})},
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )

    def pid(self, index: int) -> int:
        return self._processes[index].pid

    def send(self, index: int, number: signal.Signals) -> None:
        self._processes[index].send_signal(number)

    def kill(self, index: int) -> None:
        self._processes[index].kill()
        self._processes[index].wait()

    def __enter__(self) -> ParameterServers:
        for index in range(len(self.addresses)):
            self.start(index)
        return self

    def __exit__(self, *error: object) -> None:
        for index in self._processes:
            self.kill(index)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
