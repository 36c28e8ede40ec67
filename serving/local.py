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
from serving.client import Client

_ROOT = pathlib.Path(__file__).parents[1]
_LISTENING = re.compile(rb"listening on (\S+)")


@contextlib.contextmanager
def local_server(
    base_path: str | os.PathLike,
    model_name: str = "default",
    *,
    flags: tuple[str, ...] = (),
    deadline: float = 120.0,
) -> Iterator[LocalServer]:
    """A server on a port the system chose, with its first version available.

    Args:
      base_path: the directory of version directories.
      flags: further flags of `serving.server`.
      deadline: seconds until the model must be available.

    Raises:
      errors.ServingError: the server stopped, a version can't be loaded (its code and message),
        or none was available in time (DEADLINE_EXCEEDED).
    """
    command = [sys.executable, "-m", "serving.server", "--port=0", *flags]
    command += [f"--model_name={model_name}", f"--model_base_path={base_path}"]
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.NamedTemporaryFile("rb", suffix=".log") as log:
        process = subprocess.Popen(
            command, stderr=log.fileno(), env={**os.environ, "PYTHONPATH": path}
        )
        server = LocalServer(process, pathlib.Path(log.name), model_name)
        try:
            server.wait_available(time.monotonic() + deadline)
            yield server
        finally:
            server.stop()


class LocalServer:
    """A running server.

    Attributes:
      process: the subprocess.
      target: `host:port`.
    """

    def __init__(self, process: subprocess.Popen, log: pathlib.Path, model_name: str):
        self.process = process
        self.target = ""
        self._log = log
        self._model_name = model_name

    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    def wait_available(self, deadline: float) -> None:
        """Returns once a version is available; `deadline` is a `time.monotonic()` moment."""
        while not self.target:
            self._check_alive(deadline)
            if found := _LISTENING.search(self._log.read_bytes()):
                self.target = found[1].decode()
        with Client(self.target) as client:
            while not self._is_available(client):
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

    def _is_available(self, client: Client) -> bool:
        try:
            newest = client.status(self._model_name)[0]
        except errors.ServingError as error:
            # It hasn't looked yet, or it stopped, and then its log says why.
            if error.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                return False
            raise
        if newest.error:
            raise errors.ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"version {newest.version} can't be loaded: {newest.error}",
            )
        return newest.state == "AVAILABLE"

    def _tail(self) -> str:
        return self.log().strip()[-2000:]
