"""A trainer of a cluster: `python -m modules.training.task --task=<file>`, placed by `TF_CONFIG`.

The file says what is trained and how; every process of the cluster reads the same one.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import pathlib
import sys
import traceback
import types
from typing import Any

import pydantic

from modules.training.cluster.config import (
    LOST,
    PREEMPTED,
    Cluster,
    ClusterError,
    ClusterTask,
    task_from_environment,
)
from modules.training.cluster.orphans import die_with_parent

_FAILED, _USAGE_ERROR = 1, 2


class TrainingTask(pydantic.BaseModel):
    """Args:
    phase: 'pretrain' or 'finetune'.
    fn_args: what the phase reads of a TFX Trainer's arguments.
    folder: the run's own (`modules.training.train.train`).
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    phase: str
    fn_args: dict[str, Any]
    cluster: Cluster
    folder: str


def main(arguments: list[str]) -> int:
    """Trains; returns the exit code: 0 done, 75 stopped and saved, 76 another process was lost, 1
    no checkpoint can be read or written, 2 asked for wrongly."""
    parser = argparse.ArgumentParser(prog="python -m modules.training.task", description=__doc__)
    parser.add_argument("--task", required=True, type=pathlib.Path, help="the task's JSON file")
    parser.add_argument("--die_with_parent", action="store_true", help="not to be left behind")
    given = parser.parse_args(arguments)
    if given.die_with_parent:
        die_with_parent()
    try:
        task = TrainingTask.model_validate_json(given.task.read_text())
        place = task_from_environment()
        cluster = task.cluster
        if place is not None:
            cluster = cluster.at(place.addresses.model_dump(), "TF_CONFIG")
    except (OSError, pydantic.ValidationError, ClusterError) as error:
        print(f"error: {given.task}: {error}", file=sys.stderr)
        return _USAGE_ERROR
    return _train(task, cluster, place)


def _train(task: TrainingTask, cluster: Cluster, place: ClusterTask | None) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    # Imported only now: TensorFlow reads those when it is.
    from modules.training.checkpoint.error import CheckpointError
    from modules.training.loop import Preempted
    from modules.training.lost import lost_another
    from modules.training.placements.create import use_devices
    from modules.training.train import train

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("progress").setLevel(logging.INFO)
    phase = importlib.import_module(f"modules.training.{task.phase}")
    fn_args = types.SimpleNamespace(**task.fn_args)
    use_devices(cluster)
    try:
        train(lambda: phase.program(fn_args), fn_args, pathlib.Path(task.folder), cluster, place)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        return PREEMPTED
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USAGE_ERROR
    except Exception as error:
        if not lost_another(error):
            if not isinstance(error, CheckpointError):
                raise
            print(f"error: {error}", file=sys.stderr)
            return _FAILED
        traceback.print_exc()
        print(f"another process was lost: {type(error).__name__}", file=sys.stderr, flush=True)
        os._exit(LOST)  # TensorFlow's own end would wait for that process
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
