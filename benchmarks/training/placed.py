"""A contestant's trainer (or coordinator) under one of our placements."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tf_keras as keras  # noqa: E402

from benchmarks.training.commands import Commands, parser, place  # noqa: E402
from benchmarks.training.problem import Problem  # noqa: E402
from modules.embeddings.table import ids_key  # noqa: E402
from modules.training.input.localize import localize  # noqa: E402
from modules.training.placements.create import create, strategy_of, use_devices  # noqa: E402
from modules.training.placements.shared_tier import SharedTier  # noqa: E402

_NUM_STEPS = 2_000
"""Of the learning-rate schedule; more than are run."""


def main(arguments: list[str]) -> None:
    flags = parser(__doc__)
    flags.add_argument("--warm_up", type=int, default=64, help="steps before it is ready")
    flags.add_argument("--pull_seconds", type=float, default=0.0, help="hybrid: added to a pull")
    given = flags.parse_args(arguments)
    _slow_pulls_down(given.pull_seconds)
    problem = Problem(**given.problem)
    cluster, task = place(given.cluster)
    use_devices(cluster)
    keras.utils.set_random_seed(0)
    strategy = strategy_of(cluster, task)
    placement = create(cluster, task, strategy, problem.features, lambda: None, _unreported)
    with placement.scope():
        step = problem.step(problem.model(), _NUM_STEPS)
    placement.start(step, problem.spec.training.finetune, problem.batches)
    placement.tables.restore({})

    def train(start: int, stop: int) -> list[float]:
        reports = placement.steps(0, start, stop, start, lambda: False)
        return [float(report.sums["loss"]) / report.steps for report in reports]

    commands = Commands(given.socket)
    done = given.warm_up
    losses = train(0, done)
    commands.answer(losses=losses, **_counted_ids(problem))
    for steps in commands:
        losses = train(done, done + steps)
        done += steps
        commands.answer(losses=losses)
    os._exit(0)  # nothing to save; a coordinator's threads would wait for its servers


def _slow_pulls_down(seconds: float) -> None:
    """As if the parameter servers were far away; in the thread that pulls, so pulls overlap."""
    pull = SharedTier.pull

    def late(tier: SharedTier, ids: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(seconds)
        return pull(tier, ids)

    if seconds:
        SharedTier.pull = late  # type: ignore[method-assign]


def _counted_ids(problem: Problem) -> dict[str, int]:
    """Of a batch and all large tables: ids looked up, and distinct ones."""
    (batch,) = problem.batches(0, 0, 1)
    localized = localize(batch, problem.features)
    features = [feature for every in problem.features.values() for feature in every]
    return {
        "ids": sum(int(tf.size(batch[feature])) for feature in features),
        "distinct": sum(int(tf.size(localized[ids_key(table)])) for table in problem.features),
    }


def _unreported(event: str, **fields: Any) -> None:
    del event, fields


if __name__ == "__main__":
    main(sys.argv[1:])
