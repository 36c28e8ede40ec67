"""Runs the real model server as a subprocess, for as long as a `with` block."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import grpc

from serving import errors

_ROOT = pathlib.Path(__file__).parents[1]
_LISTENING = re.compile(r"listening on (\S+)")
_REST = re.compile(r"REST API on (\S+)")
_FAILED = re.compile(r"version \d+ can't be loaded .*")


@contextlib.contextmanager
def local_server(
    base_path: str | os.PathLike | None,
    model_name: str = "default",
    *,
    flags: tuple[str, ...] = (),
    deadline: float = 120.0,
) -> Iterator[LocalServer]:
    """A server on a port the system chose, with its first version available.

    Args:
      base_path: the directory of version directories; None if `flags` name a model_config_file.
      model_name: the model that must be available.
      flags: further flags of `serving.server`.
      deadline: seconds until it must be.

    Raises:
      errors.ServingError: the server stopped, a version can't be loaded (its code and message),
        or none was available in time (DEADLINE_EXCEEDED).
    """
    command = [sys.executable, "-m", "serving.server", "--port=0", *flags]
    if base_path is not None:
        command += [f"--model_name={model_name}", f"--model_base_path={base_path}"]
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.NamedTemporaryFile("rb", suffix=".log") as log:
        process = subprocess.Popen(
            command, stderr=log.fileno(), env={**os.environ, "PYTHONPATH": path}
        )
        server = LocalServer(process, pathlib.Path(log.name))
        try:
            server.wait_available(model_name, time.monotonic() + deadline)
            yield server
        finally:
            server.stop()


class LocalServer:
    """A running server.

    Attributes:
      process: the subprocess.
    """

    def __init__(self, process: subprocess.Popen, log: pathlib.Path):
        self.process = process
        self._log = log

    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    @property
    def target(self) -> str:
        """`host:port` of gRPC."""
        return self._logged(_LISTENING)

    @property
    def rest_url(self) -> str:
        """`http://host:port` of the REST API, if the flags ask for one."""
        return self._logged(_REST)

    def _logged(self, pattern: re.Pattern) -> str:
        found = pattern.search(self.log())
        if not found:
            raise LookupError(f"the server's log has no {pattern.pattern!r}")
        return found[1]

    def wait_available(self, model_name: str, deadline: float) -> None:
        """Returns once a version is available; `deadline` is a `time.monotonic()` moment."""
        ready = re.compile(f"ready: {re.escape(model_name)}$", re.MULTILINE)
        while not ready.search(log := self.log()):
            if failed := _FAILED.search(log):
                raise errors.failed_precondition(failed[0])
            self._check_alive(deadline)

    def stop(self, patience: float = 40.0) -> int:
        """SIGTERM, and SIGKILL if it doesn't stop within `patience` seconds. The exit code."""
        self.process.terminate()
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _check_alive(self, deadline: float) -> None:
        if self.process.poll() is not None:
            raise errors.ServingError(
                grpc.StatusCode.UNAVAILABLE,
                f"the server stopped with exit code {self.process.returncode}: {self._tail()}",
            )
        if time.monotonic() > deadline:
            raise errors.ServingError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"no version available in time: {self._tail()}"
            )
        time.sleep(0.05)

    def _tail(self) -> str:
        return self.log().strip()[-2000:]
