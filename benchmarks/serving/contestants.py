"""Processes that are measured: they answer requests, and their CPU seconds and memory are read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import psutil

from benchmarks.serving import load, run_requests
from serving.local import local_server

MODEL = "default"


@dataclasses.dataclass(frozen=True)
class Cost:
    """Milliseconds a request."""

    cpu: float
    wall: float
    """The time between answers; of many clients at once, not how long one of them waits."""


Measure = Callable[[list[list[bytes]], int, float], Cost]
"""(examples of each request, clients at once, seconds) -> cost."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    name: str
    process: psutil.Process
    target: str
    """`host:port`, '' for the reference, which is asked without a network."""
    measure: Measure


@contextlib.contextmanager
def direct(model: pathlib.Path, name: str, *, onednn: bool) -> Iterator[Contestant]:
    """The signature in process; oneDNN is TensorFlow's default, and off in our server."""
    switch = {"TF_ENABLE_ONEDNN_OPTS": str(int(onednn))}
    with _child("benchmarks.serving.direct", str(model), **switch) as process:
        _line(process)

        def measure(requests: list[list[bytes]], clients: int, seconds: float) -> Cost:
            del clients  # One after the other: what the model itself costs.
            with tempfile.NamedTemporaryFile() as file:
                file.write(pickle.dumps(requests))
                file.flush()
                assert process.stdin is not None
                process.stdin.write(json.dumps({"requests": file.name, "seconds": seconds}) + "\n")
                process.stdin.flush()
                answer = json.loads(_line(process))
            per_call = 1e3 / answer["calls"]
            return Cost(answer["cpu"] * per_call, answer["wall"] * per_call)

        yield Contestant(name, psutil.Process(process.pid), "", measure)


@contextlib.contextmanager
def naive(model: pathlib.Path) -> Iterator[Contestant]:
    """`naive_server.py`."""
    with _child("benchmarks.serving.naive_server", str(model)) as process:
        target = f"127.0.0.1:{_line(process).strip()}"
        yield _over_grpc("naive Python server", psutil.Process(process.pid), target)


@contextlib.contextmanager
def ours(model: pathlib.Path, name: str, flags: Sequence[str] = ()) -> Iterator[Contestant]:
    """`serving.server`."""
    with tempfile.TemporaryDirectory() as base_path:
        pathlib.Path(base_path, "1").symlink_to(model.absolute())
        with local_server(base_path, MODEL, flags=tuple(flags)) as server:
            yield _over_grpc(name, psutil.Process(server.process.pid), server.target)


def _over_grpc(name: str, process: psutil.Process, target: str) -> Contestant:
    def measure(requests: list[list[bytes]], clients: int, seconds: float) -> Cost:
        packed = [run_requests.predict_request(MODEL, examples) for examples in requests]
        warm, packed = packed[: 4 * clients], packed[4 * clients :]
        load.keep_busy(target, warm, clients)
        before, start = process.cpu_times(), time.perf_counter()
        latencies = load.keep_busy(target, packed, clients, seconds)
        wall, after = time.perf_counter() - start, process.cpu_times()
        cpu = after.user + after.system - before.user - before.system
        return Cost(1e3 * cpu / len(latencies), 1e3 * wall / len(latencies))

    return Contestant(name, process, target, measure)


@contextlib.contextmanager
def _child(*module_and_arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *module_and_arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(map(str, process.args))} stopped")
    return line
