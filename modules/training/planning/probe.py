"""A real trainer on made-up batches: `python -m modules.training.planning.probe --request=<file>`.

Builds what the request says where `TF_CONFIG` says, trains a few steps, writes what it saw of
itself beside the request (`<file>.result`), and stays until SIGTERM, so that its cluster can be
looked at.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import sys
import time
from typing import Annotated, Any, Literal

import pydantic

from modules.training.cluster.config import Cluster, task_from_environment
from modules.training.planning.size import BatchSize

_WARM_UP = 2
"""Steps that trace, allocate and fill caches."""


class Request(pydantic.BaseModel):
    """Args:
    spec: as JSON.
    rows: of every table.
    size: of a batch.
    steps: to train, after two that aren't timed.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    spec: dict[str, Any]
    phase: Literal["pretrain", "finetune"]
    rows: dict[str, int]
    size: BatchSize
    steps: Annotated[int, pydantic.Field(ge=1)] = 3
    cluster: Cluster = Cluster()


class Seen(pydantic.BaseModel):
    """Attributes:
    imported_bytes: resident once everything is imported, before anything is built.
    resident_bytes: after the last step.
    step_seconds: of one step, after warming up.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    imported_bytes: int
    resident_bytes: int
    step_seconds: float


def result_of(request: pathlib.Path) -> pathlib.Path:
    return request.with_suffix(".result")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("modules.training.planning.probe", description=__doc__)
    parser.add_argument("--request", required=True, type=pathlib.Path)
    path = parser.parse_args(arguments).request
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    seen = _train(Request.model_validate_json(path.read_text()))
    partial = path.with_suffix(".partial")
    partial.write_text(seen.model_dump_json())
    partial.rename(result_of(path))
    signal.sigwait(stops)
    os._exit(0)


def _train(request: Request) -> Seen:
    from modules.training import task, train  # noqa: F401  what a trainer imports
    from modules.training.planning.steps import Trainer

    imported = _resident_bytes()
    trainer = Trainer(request, task_from_environment())
    trainer.train(_WARM_UP)
    started = time.perf_counter()
    trainer.train(request.steps)
    seconds = time.perf_counter() - started
    return Seen(
        imported_bytes=imported,
        resident_bytes=_resident_bytes(),
        step_seconds=seconds / request.steps,
    )


def _resident_bytes() -> int:
    """As /proc tells (Linux)."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmRSS")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
