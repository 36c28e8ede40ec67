"""A model's predictions of every evaluation target, through its SavedModel as a server has it."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

from data.schema import schema_of
from data.spec import Spec, Task
from modules.metrics import target_rows
from tfx_pipeline.evaluation import EvalTask, score_targets

_INSTANCES = 1_024
"""Read and scored together."""
_MODEL = "model"
COLUMNS = ("user_id", "activity", "task", "label", "score")


def predict(model: pathlib.Path, instances: pathlib.Path, spec: Spec) -> pa.Table:
    """Scores the eval split.

    Args:
      model: folder of a SavedModel.
      instances: raw ones, a folder of `Split-*`.
      spec: of the model; its tasks are asked.

    Returns:
      A row a labelled target and task: `user_id`, `activity` (the user's events), `task`, `label`
      and `score`: a probability (multiclass: the label's own), or a regression's value.
    """
    loaded = {_MODEL: tf.saved_model.load(str(model))}
    tasks = [EvalTask(t.name, t.type == "multiclass", oracle=False) for t in spec.tasks]
    decoder = ExamplesToRecordBatchDecoder(schema_of(spec).SerializeToString())
    files = sorted(str(path) for path in instances.glob("Split-eval/*"))
    parts = []
    for some in tf.data.TFRecordDataset(files, "GZIP").batch(_INSTANCES).as_numpy_iterator():
        batch = _with_input(decoder.DecodeBatch(some.tolist()), some)
        rows, instance = score_targets(batch, loaded, tasks)
        users = batch.column("user_id").flatten().to_numpy(zero_copy_only=False)[instance]
        parts += [_of_task(task, users, rows) for task in spec.tasks]
    if not sum(part.num_rows for part in parts):
        raise ValueError(f"{instances}: no evaluation target has a label")
    return pa.concat_tables(parts)


def write(predictions: pa.Table, path: pathlib.Path) -> None:
    pq.write_table(predictions, path)


def read(path: pathlib.Path) -> pa.Table:
    return pq.read_table(path, columns=list(COLUMNS))


def _with_input(batch: pa.RecordBatch, serialized: np.ndarray) -> pa.RecordBatch:
    inputs = pa.array([[one] for one in serialized], pa.large_list(pa.large_binary()))
    names = [*batch.schema.names, tfma.ARROW_INPUT_COLUMN]
    return pa.RecordBatch.from_arrays([*batch.columns, inputs], names)


def _of_task(task: Task, users: np.ndarray, rows: target_rows.TargetRows) -> pa.Table:
    label = rows.values[target_rows.label(task.name)]
    labelled = ~np.isnan(label)
    label = label[labelled]
    score: Any = rows.values[target_rows.prediction(task.name, _MODEL)][labelled]
    if task.type == "multiclass":
        score = score[np.arange(len(label)), label.astype(np.int64)]
    if not np.isfinite(score).all():
        raise ValueError(f"{task.name}: a labelled target has no finite prediction")
    columns = {
        "user_id": pa.array(users[labelled], pa.binary()).cast(pa.string()),
        "activity": pa.array(rows.activity[labelled], pa.int64()),
        "task": pa.array([task.name] * len(label), pa.string()),
        "label": pa.array(label, pa.float32()),
        "score": pa.array(score, pa.float32()),
    }
    return pa.table(columns)
