"""What is known without a model: how often each label occurs (PeterRec §4.1, LabelCS)."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import tensorflow as tf

from data.spec import Spec, Task

NAME = "label frequency"
"""No model's: those have no spaces."""
_TRAIN = 0
_AT_ONCE = 4_096


def frequencies(instances: pathlib.Path, spec: Spec) -> dict[str, np.ndarray]:
    """Of the labels that training has, by task: each class's share (binary: of 0 and 1), or a
    regression's mean, float64 [1].

    Args:
      instances: raw ones, a folder of `Split-*`.
    """
    names = ["target_split", *(task.label_feature for task in spec.tasks)]
    kinds = {name: tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64) for name in names}
    kinds["target_split"] = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
    found: dict[str, list[np.ndarray]] = {task.name: [] for task in spec.tasks}
    files = sorted(str(path) for path in instances.glob("Split-*/*"))
    for some in tf.data.TFRecordDataset(files, "GZIP").batch(_AT_ONCE):
        parsed = tf.io.parse_example(some, kinds)
        flat = {name: values.flat_values.numpy() for name, values in parsed.items()}
        for task in spec.tasks:
            found[task.name].append(flat[task.label_feature][flat["target_split"] == _TRAIN])
    return {task.name: _frequency(task, np.concatenate(found[task.name])) for task in spec.tasks}


def answers(asked: pa.Table, known: dict[str, np.ndarray], spec: Spec) -> pa.Table:
    """A model's predictions (`predictions.predict`) with what is `known` as their scores."""
    score = np.empty(asked.num_rows, np.float32)
    names, labels = asked["task"].to_numpy(), asked["label"].to_numpy()
    for task in spec.tasks:
        of_task = names == task.name
        place = {"binary": 1, "regression": 0, "multiclass": labels[of_task].astype(np.int64)}
        score[of_task] = known[task.name][place[task.type]]
    index = asked.schema.get_field_index("score")
    return asked.set_column(index, "score", pa.array(score))


def _frequency(task: Task, labels: np.ndarray) -> np.ndarray:
    labels = labels[~np.isnan(labels)].astype(np.float64)
    if task.type == "regression":
        return labels.mean(keepdims=True)
    num_classes = len(task.classes or (0, 1))
    return np.bincount(labels.astype(np.int64), minlength=num_classes) / len(labels)
