"""Three minutes of traffic while everything that operators do to a server happens to it.

    python -m benchmarks.serving.soak [--run=runs/simulator]

Five new versions are pushed one by one, a corrupt one in the middle, a second model by a config
reload, and at the end a SIGTERM. Every request until then must be answered. Latencies while a
version is loaded, warmed up and swapped stand beside those of the calm between. Exits with 1 if a
bar is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import grpc
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.serving import load, run_requests
from serving import errors
from serving.client import Client
from serving.local import LocalServer, local_server

_RUN = flags.DEFINE_string("run", "runs/simulator", "A finished run (`make run`).")
_SECONDS = flags.DEFINE_float("seconds", 180.0, "Length of the traffic.", lower_bound=30.0)
_CLIENTS = flags.DEFINE_integer("clients", 4, "Each has one request under way.", lower_bound=1)
_PAUSE = flags.DEFINE_float(
    "pause", 0.03, "Seconds a client waits between its requests: a server that is busy all the "
    "time has no calm to compare with.",
)  # fmt: skip
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_SWAPS = 5
_MAX_RATIO = 3.0
_ON_ITS_WAY = 0.02
"""Seconds: what was sent so shortly before the SIGTERM may have arrived after it."""
_WORST = ("swap", "other")
_MODEL = "users"


@dataclasses.dataclass
class Request:
    """When it was sent (`time.monotonic()`), how many seconds it took, and how it failed."""

    start: float
    seconds: float
    failure: str = ""


class Event(NamedTuple):
    """`swap` of versions, or `other`: a corrupt one is refused, a second model loaded."""

    kind: str
    start: float
    end: float


class Traffic:
    """Clients in a thread of their own, until stopped."""

    def __init__(self, target: str, requests: Iterator[bytes], clients: int):
        self.answered: list[Request] = []
        self._stopping = False
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(target, requests, clients))
        )
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._thread.join()

    async def _run(self, target: str, requests: Iterator[bytes], clients: int) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            predict = channel.unary_unary(load.PREDICT)

            async def client() -> None:
                for request in requests:
                    if self._stopping:
                        return
                    start, failure = time.monotonic(), ""
                    try:
                        await predict(request, timeout=30)
                    except grpc.aio.AioRpcError as error:
                        failure = f"{error.code().name}: {error.details()}"
                    self.answered.append(Request(start, time.monotonic() - start, failure))
                    await asyncio.sleep(_PAUSE.value)

            await asyncio.gather(*(client() for _ in range(clients)))


def main(argv: list[str]) -> None:
    del argv
    run = pathlib.Path(_RUN.value)
    model, users = run_requests.pushed_model(run), run_requests.users(run)
    requests = (run_requests.predict_request(_MODEL, [e]) for e in run_requests.fresh(users))
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        base_path = pathlib.Path(folder, _MODEL)
        base_path.mkdir()
        (base_path / "1").symlink_to(model.absolute())
        config = pathlib.Path(folder, "models.config")
        config.write_text(_config(base_path))
        flags_ = (f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=1")
        with local_server(None, _MODEL, flags=flags_) as server:
            traffic = Traffic(server.target, requests, _CLIENTS.value)
            try:
                events = _disturb(server, base_path, config, model, console)
                told = time.monotonic()
                code = server.stop()
            finally:
                traffic.stop()
    if not _report(console, traffic.answered, events, told, code):
        sys.exit(1)


def _disturb(
    server: LocalServer,
    base_path: pathlib.Path,
    config: pathlib.Path,
    model: pathlib.Path,
    console: Console,
) -> list[Event]:
    """Lets everything happen, and says what and when."""
    start, events = time.monotonic(), []
    step = _SECONDS.value / (2 * _SWAPS + 3)
    with Client(server.target) as client:
        for number in range(_SWAPS):
            _sleep_until(start + (2 * number + 2) * step)
            pushed, version = time.monotonic(), 2 * number + 3
            (base_path / str(version)).symlink_to(model.absolute())
            _wait_for_only(client, version)
            events.append(Event("swap", pushed, time.monotonic()))
            console.print(f"version {version} took over in {time.monotonic() - pushed:.1f} s")
            if number == _SWAPS // 2:
                _sleep_until(start + (2 * number + 3) * step)
                pushed = time.monotonic()
                _push_corrupt(base_path / str(version + 1))
                _wait_for_failure(client, version + 1)
                console.print("a corrupt version was pushed, and isn't served")
                _remove_corrupt(base_path / str(version + 1))
                events.append(Event("other", pushed, time.monotonic()))
        pushed = time.monotonic()
        config.write_text(_config(base_path, second=True))
        _wait_for(lambda: client.status("second")[0].state == "AVAILABLE")
        events.append(Event("other", pushed, time.monotonic()))
        console.print("a reload brought a second model")
        _sleep_until(start + _SECONDS.value)
    return events


def _config(base_path: pathlib.Path, second: bool = False) -> str:
    names = [_MODEL, "second"] if second else [_MODEL]
    models = "".join(
        f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" }}\n'
        for name in names
    )
    return f"model_config_list {{\n{models}}}\n"


def _wait_for_only(client: Client, version: int) -> None:
    def states() -> list[tuple[int, str]]:
        return [(s.version, s.state) for s in client.status(_MODEL) if s.state != "END"]

    _wait_for(lambda: states() == [(version, "AVAILABLE")])


def _wait_for_failure(client: Client, version: int) -> None:
    _wait_for(lambda: any(s.version == version and s.error for s in client.status(_MODEL)))


def _wait_for(happened) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(errors.ServingError):
            if happened():
                return
        if time.monotonic() > deadline:
            raise SystemExit("it didn't happen within a minute")
        time.sleep(0.1)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _push_corrupt(path: pathlib.Path) -> None:
    staging = path.with_suffix(".partial")
    staging.mkdir()
    (staging / "saved_model.pb").write_bytes(b"no model")
    staging.rename(path)


def _remove_corrupt(path: pathlib.Path) -> None:
    (path / "saved_model.pb").unlink()
    path.rmdir()


def _report(
    console: Console, answered: list[Request], events: list[Event], told: float, code: int
) -> bool:
    """Prints the figures. Whether every bar is met."""
    served = [r for r in answered if answered[0].start + 2 < r.start < told - 1]
    arrived = told - _ON_ITS_WAY
    failed = [r for r in answered if r.failure and r.start < arrived]
    late = [r for r in answered if r.failure and r.start >= arrived]
    groups: dict[str, list[float]] = {"calm": [], "swap": [], "other": []}
    for request in served:
        end = request.start + request.seconds
        kinds = {e.kind for e in events if request.start < e.end and end > e.start}
        groups[min(kinds, default="calm", key=_WORST.index)].append(1e3 * request.seconds)
    table = Table(title="milliseconds a request")
    for column in ("", "requests", "p50", "p99", "longest"):
        table.add_column(column, justify="right")
    figures = {}
    for name, values in groups.items():
        p50, p99 = np.percentile(values, [50, 99])
        figures[name] = {"requests": len(values), "p50": p50, "p99": p99, "longest": max(values)}
        table.add_row(name, str(len(values)), f"{p50:.1f}", f"{p99:.1f}", f"{max(values):.1f}")
    console.print(table)
    ratio = figures["swap"]["p99"] / figures["calm"]["p99"]
    console.print(f"p99 of swaps / p99 of calm: {ratio:.2f} (bar: {_MAX_RATIO})")
    console.print(f"failed before the SIGTERM: {len(failed)} of {len(answered)} (bar: 0)")
    for failure, same in itertools.groupby(sorted(r.failure for r in failed)):
        console.print(f"  {len(list(same))} x {failure}")
    console.print(f"refused after it: {len(late)}; exit code {code}")
    if _OUTPUT.value:
        outcome = {**figures, "ratio": ratio, "failed": len(failed), "exit_code": code}
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(outcome, indent=2))
    return ratio <= _MAX_RATIO and not failed and not code


if __name__ == "__main__":
    app.run(main)
