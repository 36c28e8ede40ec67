"""Trains tasks on a pushed model, which stays as it is, and puts them where its server looks."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
import tf_keras as keras

from data import ingestion
from data.added_tasks import AddedTasks
from data.spec import Spec
from modules.training import added_tasks

_PROGRESS = logging.getLogger("progress")
_BEAM_ARGS = ["--direct_num_workers=1", "--direct_running_mode=in_memory"]


def instances(spec: Spec, data_root: str, folder: pathlib.Path) -> list[str]:
    """Instances with the labels of `with_added`'s spec, made from a run's events once more.

    Raises:
      SourceError, IngestionError: as the run's own ingestion.
    """
    ingestion.ingest(
        beam.Pipeline(argv=_BEAM_ARGS),
        spec,
        data_root,
        {split: str(folder / split) for split in ingestion.SPLITS},
        str(folder),
        str(folder),
    )
    return sorted(map(str, folder.glob("*/*.gz")))


def add(
    model: str, files: Sequence[str], wanted: AddedTasks, folder: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """Trains each task on what the model gave of the instances, and writes its file to `folder`.

    Yields:
      What the file says of the task beside its weights.

    Raises:
      AddedTaskError: the model takes no tasks, there are no instances, or a task has no
        label among the training targets.
    """
    backbone = added_tasks.backbone_of(model)
    loaded = tf.saved_model.load(model)
    rows = added_tasks.read_rows(loaded, files, wanted.tasks)
    parameters = sum(weight.shape.num_elements() for weight in loaded.weights)
    keras.mixed_precision.set_global_policy("float32")
    for number, task in enumerate(wanted.tasks):
        _PROGRESS.info("%s", task.name, extra={"fraction": number / len(wanted.tasks)})
        added = added_tasks.train(task, rows, wanted.bottleneck_dim, wanted.phase, wanted.seed)
        metrics = added_tasks.evaluate(task, added, rows)
        yield added_tasks.write(folder, task, added, backbone, parameters, metrics)
