"""Trains tasks on a pushed model that stays as it is, and writes what a server adds of each.

The model is run once over the instances; a task then learns from what it gave. Tasks don't know of
each other: trained together or one by one, they come out the same.
"""

from __future__ import annotations

import json
import logging
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from data.spec import Phase, Task
from modules.metrics.auc import auc
from modules.metrics.gauc import gauc
from modules.models.added_task import AddedTask
from modules.models.task_bank import Given
from modules.objectives.task_loss import task_loss
from modules.training.export import ADDED_TASK_INPUTS
from modules.training.loop import Loop
from modules.training.placements.synchronous import Synchronous, to_numpy
from modules.training.step import Scalars, Step

_PROGRESS = logging.getLogger("progress")
_INSTANCES_PER_CALL = 64
_EVAL_SPLIT = 1


class Rows(NamedTuple):
    """N labelled targets: given, as NumPy; labels, task -> float32 [N], NaN where missing; user,
    int64 [N], a fingerprint of whose each is; is_eval, bool [N]."""

    given: Given
    labels: dict[str, np.ndarray]
    user: np.ndarray
    is_eval: np.ndarray

    def of(self, task: str, *, is_eval: bool) -> Rows:
        """Those of one split that the task has labels of."""
        return self.take(self.places(task, is_eval=is_eval))

    def places(self, task: str, *, is_eval: bool) -> np.ndarray:
        """Which ones these are, int64."""
        return np.flatnonzero((self.is_eval == is_eval) & ~np.isnan(self.labels[task]))

    def take(self, chosen: np.ndarray) -> Rows:
        """Those at `chosen`: int [n], or bool [N]."""
        return tf.nest.map_structure(lambda array: array[chosen], self)


class AddedTaskError(ValueError):
    """A model or data that tasks can't be added to. The message says why."""


def backbone_of(model: str) -> str:
    """The fingerprint of a pushed model's weights, which tasks are trained on.

    Raises:
      AddedTaskError: the model takes no tasks.
    """
    path = pathlib.Path(model, "assets.extra", "serving.json")
    contract = json.loads(path.read_text()) if path.exists() else {}
    if "added_tasks" not in contract:
        raise AddedTaskError(f"{model} takes no added tasks; run it with 'model.added_tasks: true'")
    return contract["added_tasks"]["backbone"]


def read_rows(loaded: Any, files: Sequence[str], tasks: Sequence[Task]) -> Rows:
    """Runs a model over instances, each once.

    Args:
      loaded: the SavedModel, exported with `model.added_tasks`.
      files: gzipped TFRecords of raw instances that hold the tasks' labels.

    Raises:
      AddedTaskError: they hold no instance.
    """
    run = loaded.signatures[ADDED_TASK_INPUTS]
    features = {
        "user_id": tf.io.FixedLenFeature([], tf.string),
        "target_split": tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64),
    }
    labels = {task.name: task.label_feature for task in tasks}
    features |= {
        feature: tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64)
        for feature in labels.values()
    }
    parts = []
    for examples in tf.data.TFRecordDataset(list(files), "GZIP").batch(_INSTANCES_PER_CALL):
        raw = tf.io.parse_example(examples, features)
        given = run(examples=examples)
        real = tf.sequence_mask(given["target_count"])
        user = tf.strings.to_hash_bucket_fast(raw["user_id"], 2**63 - 1)
        rows = Rows(
            Given(*(given[name][real] for name in Given._fields)),
            {name: raw[feature].flat_values for name, feature in labels.items()},
            tf.repeat(user, given["target_count"]),
            raw["target_split"].flat_values == _EVAL_SPLIT,
        )
        rows = to_numpy(rows)
        parts.append(rows.take(~np.isnan(list(rows.labels.values())).all(axis=0)))
    if not parts:
        raise AddedTaskError(f"{', '.join(files)}: no instances")
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)


def train(task: Task, rows: Rows, bottleneck_dim: int, phase: Phase, seed: int = 0) -> AddedTask:
    """Trains one task on its training targets.

    Args:
      phase: its batches are of targets.

    Raises:
      AddedTaskError: there are none.
    """
    places = rows.places(task.name, is_eval=False)
    if not len(places):
        raise AddedTaskError(f"tasks: {task.name!r} has no label among the training targets")
    num_layers, dim = rows.given.layers.shape[1:]
    added = AddedTask(task, num_layers, dim, bottleneck_dim, seed)
    data = {**rows.given._asdict(), "label": rows.labels[task.name]}
    signature = {
        name: tf.TensorSpec([None, *array.shape[1:]], tf.float32) for name, array in data.items()
    }
    num_batches = math.ceil(len(places) / phase.batch_size)

    def batches(epoch: int, start: int, stop: int) -> tf.data.Dataset:
        order = np.random.default_rng([seed, epoch]).permutation(places)

        def chosen() -> Iterator[dict[str, np.ndarray]]:
            for at in np.array_split(order, num_batches)[start:stop]:
                yield {name: array[at] for name, array in data.items()}

        return tf.data.Dataset.from_generator(chosen, output_signature=signature)

    def loss(batch: dict[str, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, Scalars]:
        label = batch.pop("label")[:, tf.newaxis]
        logits = added(Given(**batch))[:, tf.newaxis]
        return task_loss(task, logits, label, tf.ones_like(label, tf.bool))[0], {}

    placement = Synchronous(tf.distribute.get_strategy(), {})
    step = Step(added, loss, phase, phase.epochs * num_batches)
    placement.start(step, phase, batches)
    Loop(
        f"add {task.name}",
        num_batches,
        phase.epochs,
        save_every=phase.epochs * num_batches + 1,
        history=None,
        save=lambda step: None,
        at_epoch_end=dict,
        stop_requested=lambda: False,
    ).run(placement, 0)
    return added


def evaluate(task: Task, added: AddedTask, rows: Rows) -> dict[str, float]:
    """Of the evaluation targets: their number; of binary tasks `auc` and, per impression, `gauc`;
    of regression `rmse`. What can't be computed (one class only) is left out."""
    rows = rows.of(task.name, is_eval=True)
    label = rows.labels[task.name]
    values = {"targets": float(len(label))}
    if not len(label):
        return values
    score = added(rows.given).numpy()
    if task.type == "regression":
        return values | {"rmse": float(np.sqrt(np.mean(np.square(score - label))))}
    values["auc"] = auc(label, score)
    if task.per == "impression":
        values["gauc"] = gauc(rows.user, label, score)
    return {name: value for name, value in values.items() if not math.isnan(value)}


def write(
    folder: pathlib.Path,
    task: Task,
    added: AddedTask,
    backbone: str,
    backbone_parameters: int,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Writes `<backbone>/<task>.npz`, complete or not at all; a server has it at its next look.

    Args:
      folder: `tasks` beside the model's versions.
      backbone: of `backbone_of` the model it was trained on.
      backbone_parameters: of that model, all of them: what fine-tuning all would train.

    Returns:
      What the file says of the task beside its weights.
    """
    tuned = sum(math.prod(variable.shape) for variable in added.trainable_variables)
    about = {
        "name": task.name,
        "per": task.per,
        "type": task.type,
        "backbone": backbone,
        "tuned_parameters": tuned,
        "tuned_share": tuned / backbone_parameters,
        "eval": metrics,
    }
    weights = {name: weight[0].numpy() for name, weight in added.weights._asdict().items()}
    path = folder / backbone / f"{task.name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, task=np.array(json.dumps(about)), **weights)
    partial.rename(path)
    return about
