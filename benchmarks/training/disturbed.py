"""A training run in processes of its own, watched from outside through what it writes.

`python -m benchmarks.training.disturbed --fn_args=<file>` is the run itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import pathlib
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

from modules.training.cluster.config import Role
from modules.training.cluster.events import (
    CLUSTER_EVENTS,
    TRAINING_EVENTS,
    Event,
    read_events,
)

PHASE = "finetune"
_HISTORY = "history.jsonl"
_POLL_SECONDS = 0.1


class TrainingFailed(RuntimeError):
    """It ended by itself, and not well; the message has the end of its log."""


class Training(contextlib.AbstractContextManager):
    """Args:
    fn_args: a Trainer's; its outputs and `state` are put below `folder`.
    folder: of this run alone.
    """

    def __init__(self, fn_args: dict[str, Any], folder: pathlib.Path):
        self.state = folder / "state"
        self._run = folder / "run"
        self._log = folder / "log"
        self._file = folder / "fn_args.json"
        config = fn_args["custom_config"] | {"state": str(self.state)}
        outputs = {"model_run_dir": str(self._run), "serving_model_dir": str(folder / "model")}
        self._fn_args = {**fn_args, **outputs, "custom_config": config}
        self._started = 0.0

    def __enter__(self) -> Training:
        self._file.write_text(json.dumps(self._fn_args))
        self._started = time.monotonic()
        command = [sys.executable, "-W", "ignore", "-m", __spec__.name, f"--fn_args={self._file}"]
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.kill()  # its cluster's guard takes the rest down
        self._popen.wait()

    def wait(self, seconds: float) -> float:
        """Waits for the end; returns the seconds since the start.

        Raises:
          TrainingFailed: it failed, or still trains after that time.
        """
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TrainingFailed(f"still trains after {seconds:.0f} s") from None
        if code:
            raise TrainingFailed(f"{self._last_lines()}\nended with {code}")
        return time.monotonic() - self._started

    def wait_for(self, event: str, count: int = 1, seconds: float = 300.0) -> list[Event]:
        """Waits until `event` has happened so often; all of these so far.

        Raises:
          TrainingFailed: it ended before, or took longer.
        """
        deadline = time.monotonic() + seconds
        while True:
            code = self._popen.poll()
            found = [e for e in self.events() if e["event"] == event]
            if len(found) >= count:
                return found
            if code is not None:
                raise TrainingFailed(f"{self._last_lines()}\nended with {code} before {event}")
            if time.monotonic() > deadline:
                raise TrainingFailed(f"{self._last_lines()}\nno {event} within {seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def pid(self, role: Role, index: int) -> int:
        """Of the newest life of a process."""
        (*_, newest) = (
            e["pid"]
            for e in self.events()
            if e["event"] in ("start", "restart") and (e["role"], e["index"]) == (role, index)
        )
        return newest

    def events(self) -> list[Event]:
        """What the cluster and the trainer told so far, in the order of time."""
        lists = [
            read_events(path)
            for name in (CLUSTER_EVENTS, TRAINING_EVENTS)
            for path in self._written(name)
        ]
        return sorted((e for events in lists for e in events), key=lambda e: e["time"])

    def auc(self) -> float:
        """After the last epoch, on held-out users: the mean over binary tasks."""
        (path,) = self._written(_HISTORY)
        (*_, last) = (r for r in map(json.loads, path.read_text().splitlines()) if "epoch_end" in r)
        return statistics.mean(v for k, v in last.items() if k.startswith("val/"))

    def _written(self, name: str) -> Iterator[pathlib.Path]:
        """A file of the run, wherever it is by now."""
        while_it_runs = self.state.glob(f"{PHASE}-*/{name}")
        yield from [*while_it_runs, *self._run.glob(name)][:1]

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])


def main(arguments: list[str]) -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--fn_args", required=True, type=pathlib.Path)
    given = json.loads(flags.parse_args(arguments).fn_args.read_text())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    from modules.training.run import run  # TensorFlow

    # What follows training, the export, is one process's and costs more than training does here.
    phase = importlib.import_module(f"modules.training.{PHASE}")
    phase.finish = lambda fn_args, trained: None
    run(PHASE, types.SimpleNamespace(**given))


if __name__ == "__main__":
    main(sys.argv[1:])
