"""Trains a program in a cluster: what every trainer and the coordinator do."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from data.spec import Spec
from modules.embeddings.table import ids_key, rows_key
from modules.features import Batch
from modules.models.tables import table_dim
from modules.preprocessing import table_rows
from modules.training import files
from modules.training.checkpoint.preemption import stop_requested
from modules.training.checkpoint.store import Checkpoint
from modules.training.cluster.config import Cluster, ClusterTask
from modules.training.cluster.events import TRAINING_EVENTS, EventLog
from modules.training.cluster.possible import require_possible
from modules.training.history import History
from modules.training.input.batches import epoch_batches
from modules.training.input.localize import large_tables, localize
from modules.training.input.shards import Shards, load_shards, write_shards
from modules.training.lifecycle import lifecycle
from modules.training.loop import Loop, Preempted
from modules.training.placements.create import create, strategy_of
from modules.training.placements.placement import Batches, Placement
from modules.training.program import Program
from modules.training.saving import Saving, load_into, newest_chunks
from modules.training.step import Step

if TYPE_CHECKING:
    from tfx.components.trainer.fn_args_utils import FnArgs

CHECKPOINTS = "checkpoints"
_INPUT = "input"
_WAIT_SECONDS = 600
"""For the chief to write another shard of the input."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run leaves: the last step's checkpoint, and its folder."""

    checkpoint: Checkpoint
    folder: pathlib.Path


def train(
    program: Callable[[], Program],
    fn_args: FnArgs,
    folder: pathlib.Path,
    cluster: Cluster,
    task: ClusterTask | None,
) -> Trained | None:
    """Trains to the end, from where `folder` says that an earlier process came.

    Args:
      program: made after this process is connected with the others.
      folder: the run's own: input, checkpoints, history, events; every process sees it.
      task: this process's; None: it is alone.

    Returns:
      None for a trainer that isn't the chief.

    Raises:
      Preempted: it was told to stop, and has saved.
      ClusterError: the placement can't train this spec.
    """
    strategy = strategy_of(cluster, task)
    # Only now: a strategy of several hosts puts TensorFlow's own handler of SIGTERM in place.
    with stop_requested() as stop:
        of_phase = program()
        require_possible(cluster, of_phase.spec)
        chief = task is None or task.type == "chief"
        shards = _shards(of_phase, fn_args, folder / _INPUT, chief)
        features = large_tables(of_phase.spec, table_rows(of_phase.spec, of_phase.transform_output))
        report = EventLog(folder / TRAINING_EVENTS).add if chief else _unrecorded
        newest = functools.partial(newest_chunks, folder / CHECKPOINTS, folder.name)
        placement = create(cluster, task, strategy, features, newest, report)
        with contextlib.closing(placement):
            return _train(
                of_phase, placement, shards, features, folder, cluster, chief, report, stop.is_set
            )


def restored(program: Program, trained: Trained) -> Any:
    """The trained module, all of it in this process.

    Raises:
      CheckpointError: the checkpoint isn't this program's, or is damaged.
    """
    shards = load_shards(str(trained.folder / _INPUT))
    batches = functools.partial(epoch_batches, shards, program.transform_output, program.spec)
    module = program.build(_small_batch(batches, {}, program.spec))
    load_into(module, trained.checkpoint)
    return module


def _train(
    program: Program,
    placement: Placement,
    shards: Shards,
    features: Mapping[str, tuple[str, ...]],
    folder: pathlib.Path,
    cluster: Cluster,
    chief: bool,
    report: Callable[..., None],
    stopped: Callable[[], bool],
) -> Trained | None:
    started = time.monotonic()
    batches = functools.partial(epoch_batches, shards, program.transform_output, program.spec)
    num_steps = program.phase.epochs * shards.num_batches
    with placement.scope():
        module = program.build(_small_batch(batches, features, program.spec))
        step = Step(
            module,
            lambda batch, number: program.loss(module, batch, number),
            program.phase,
            num_steps,
        )
    placement.start(step, program.phase, batches)
    saving = Saving(
        folder / CHECKPOINTS,
        folder.name,
        module,
        step,
        placement,
        cluster.placement,
        keep=cluster.checkpoint.keep,
        max_deltas=cluster.checkpoint.max_deltas,
        writes=chief,
        report=report,
    )
    resumed = saving.resume()
    first = resumed or 0
    if resumed is None:
        base = program.warm_start(module, placement)
        if base is not None:
            saving.start_from(base)
    history = History(folder, program.name, first) if chief else None
    report(
        "training",
        step=first,
        num_steps=num_steps,
        seconds=round(time.monotonic() - started, 3),
        repeated=history.repeated if history else None,
    )
    loop = Loop(
        program.title,
        shards.num_batches,
        program.phase.epochs,
        cluster.checkpoint.every_steps,
        history,
        saving.save,
        functools.partial(program.at_epoch_end, module, placement),
        stopped,
        functools.partial(lifecycle, module),
        report,
    )
    try:
        loop.run(placement, first)
    except Preempted as stopped:
        saving.finish(stopped.step)  # or it isn't said to be saved
        raise
    except BaseException:
        saving.close()
        raise
    checkpoint = saving.finish(num_steps)
    if history is not None:
        history.flush()
    report("trained", step=num_steps, seconds=round(time.monotonic() - started, 3))
    return Trained(checkpoint, folder) if checkpoint else None


def _small_batch(batches: Batches, features: Mapping[str, tuple[str, ...]], spec: Spec) -> Batch:
    """What variables are built with: two instances, with rows for tables that live elsewhere."""
    batch = next(iter(batches(0, 0, 1)))
    batch = localize({name: value[:2] for name, value in batch.items()}, features)
    rows = {name: [tf.size(batch[ids_key(name)]), table_dim(spec, name)] for name in features}
    return batch | {rows_key(name): tf.zeros(shape) for name, shape in rows.items()}


def _shards(program: Program, fn_args: FnArgs, folder: pathlib.Path, chief: bool) -> Shards:
    """Written by the chief, while the others wait."""
    return write_shards(
        files.of_split(fn_args, program.spec, "train"),
        program.transform_output,
        program.spec,
        "train",
        str(folder),
        batch_size=program.phase.batch_size,
        seed=program.spec.training.seed,
        min_events=program.min_events,
        min_targets=program.min_targets,
        user_share=program.user_share,
        wait_seconds=None if chief else _WAIT_SECONDS,
    )


def _unrecorded(event: str, **fields: Any) -> None:
    logging.getLogger(__name__).info("%s %s", event, fields)
