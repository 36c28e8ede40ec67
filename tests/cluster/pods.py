"""What Kubernetes and the training-operator do with a TFJob, done with processes of this machine.

As there, a container gets its image's environment, the manifest's and `TF_CONFIG`, and is started
again when it fails (`restartPolicy: OnFailure`); the job succeeds with its chief, and then what
still runs is deleted (`cleanPodPolicy: Running`; here at once, as there is nothing left to save).
Of the manifest's commands only `python` is another one, and of the addresses host and port: pods
have theirs to themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.repo.source_tree import ROOT

IMAGE = {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"}
"""Environment that `deploy/Dockerfile` sets."""
OF_THE_MACHINE = ("PATH", "HOME", "LD_LIBRARY_PATH")


class Pods:
    """The pods of a TFJob, as `<replica type>-<index>`."""

    def __init__(self, manifest: dict[str, Any], logs: pathlib.Path):
        self._logs = logs
        self._replicas = {
            name.lower(): replica for name, replica in manifest["spec"]["tfReplicaSpecs"].items()
        }
        self._limit = manifest["spec"]["runPolicy"]["backoffLimit"]
        self._addresses = {
            name: _free_addresses(replica["replicas"]) for name, replica in self._replicas.items()
        }
        self.processes: dict[str, subprocess.Popen] = {}
        self.exit_codes: dict[str, list[int]] = {}
        """Of every pod's containers that failed, in turn."""

    def run(self, seconds: float, meanwhile: Callable[[Pods], object]) -> None:
        """Runs the job until it has succeeded; `meanwhile` is called now and then.

        Raises:
          AssertionError: it failed, or took longer.
        """
        deadline = time.monotonic() + seconds
        with self._started():
            while self.processes["chief-0"].poll() != 0:
                self._restart_failed()
                meanwhile(self)
                assert time.monotonic() < deadline, f"{self.exit_codes}\n{self.log('chief-0')}"
                time.sleep(0.2)

    def drain(self) -> None:
        """Tells all pods to stop at once, and waits until they have; then they come back."""
        told = time.monotonic()
        for process in self.processes.values():
            process.terminate()
        for pod, process in self.processes.items():
            spec = self._replicas[pod.split("-")[0]]["template"]["spec"]
            left = told + spec["terminationGracePeriodSeconds"] - time.monotonic()
            try:
                process.wait(max(0.0, left))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def log(self, pod: str) -> str:
        return (self._logs / pod).read_text(errors="replace")

    @contextlib.contextmanager
    def _started(self) -> Iterator[None]:
        try:
            for name, replica in self._replicas.items():
                for index in range(replica["replicas"]):
                    self._start(name, index)
            yield
        finally:
            for process in self.processes.values():
                process.kill()
            for process in self.processes.values():
                process.wait()

    def _start(self, name: str, index: int) -> None:
        (container,) = self._replicas[name]["template"]["spec"]["containers"]
        assert container["command"] == ["python"]
        place = {"cluster": self._addresses, "task": {"type": name, "index": index}}
        alone = sum(map(len, self._addresses.values())) == 1  # the operator leaves it out then
        tf_config = {} if alone else {"TF_CONFIG": json.dumps({**place, "environment": "cloud"})}
        environment = {
            **{key: os.environ[key] for key in OF_THE_MACHINE if key in os.environ},
            **IMAGE,
            **{entry["name"]: entry["value"] for entry in container.get("env", [])},
            **tf_config,
        }
        with (self._logs / f"{name}-{index}").open("ab") as log:
            self.processes[f"{name}-{index}"] = subprocess.Popen(
                [sys.executable, *container["args"]],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _restart_failed(self) -> None:
        for pod, process in list(self.processes.items()):
            if not process.poll():
                continue
            name, index = pod.split("-")
            assert self._replicas[name]["restartPolicy"] == "OnFailure"
            self.exit_codes.setdefault(pod, []).append(process.returncode)
            failures = sum(map(len, self.exit_codes.values()))
            assert failures <= self._limit, f"{self.exit_codes}\n{self.log(pod)}"
            self._start(name, int(index))


def _free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("localhost", 0))
        return [f"localhost:{free.getsockname()[1]}" for free in sockets]
