"""What a training took, however often it was interrupted; and how large its model is."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Sequence

from data.spec import Spec
from modules.training.cluster.events import TRAINING_EVENTS, read_events
from modules.training.planning.blueprint import draw
from modules.training.planning.plan import parameters_of
from modules.training.planning.rows import rows_of
from modules.training.planning.size import BatchSize
from tfx_pipeline.comparison import training
from tfx_pipeline.progress import LOGGER

_SMALL = BatchSize(instances=2, events=4, targets=2)
_EVERY_SECONDS = 1.0


class Meter(logging.Handler):
    """This process's CPU seconds while it trains, added to those that `path` holds.

    It writes at most once a second, when training reports progress: a `kill -9` loses a second, and
    what is trained again after it counts again.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__(logging.INFO)
        self._path = path
        self._before = cpu_seconds(path) if path.exists() else 0.0
        self._started = time.process_time()
        self._written = time.monotonic()

    @property
    def cpu_seconds(self) -> float:
        return self._before + time.process_time() - self._started

    def __enter__(self) -> Meter:
        logging.getLogger(LOGGER).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger(LOGGER).removeHandler(self)
        self._write()

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._written > _EVERY_SECONDS:
            self._write()

    def _write(self) -> None:
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"cpu_seconds": self.cpu_seconds}))
        new.replace(self._path)
        self._written = time.monotonic()


def cpu_seconds(path: pathlib.Path) -> float:
    """What a meter has counted."""
    return json.loads(path.read_text())["cpu_seconds"]


def steps_of(folders: Sequence[pathlib.Path]) -> dict[str, int]:
    """Steps of each phase that was trained in one of these folders."""
    every = [path for folder in folders for path in training.phases(folder)]
    return {path.name: int(_last(path, "training")["num_steps"]) for path in every}


def seconds_a_step(folder: pathlib.Path) -> float:
    """Of fine-tuning: wall time of its last uninterrupted stretch, its evaluations included."""
    path = training.model_of(folder)
    began, ended = _last(path, "training"), _last(path, "trained")
    return (ended["time"] - began["time"]) / max(1, int(ended["step"]) - int(began["step"]))


def _last(path: pathlib.Path, event: str) -> dict:
    return [e for e in read_events(path / TRAINING_EVENTS) if e["event"] == event][-1]


@dataclasses.dataclass(frozen=True)
class Size:
    """Parameters of a model as it is fine-tuned; `active`: outside tables, for a token."""

    total: int
    active: int
    tuned: int


def size_of(spec: Spec, transform_graph: pathlib.Path) -> Size:
    """Counted on the real model, without giving it memory (`modules/training/planning`)."""
    rows = rows_of(spec, {}, str(transform_graph))
    blueprint = draw(spec, "finetune", {table: known.rows for table, known in rows.items()}, _SMALL)
    known = parameters_of(blueprint, rows)
    return Size(known.total, known.active, blueprint.tuned)
