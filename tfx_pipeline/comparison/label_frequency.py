"""What is known without a model: how often each label occurs (PeterRec §4.1, LabelCS)."""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import tensorflow as tf

from data.channels import Channel, IdChannel
from data.columns import id_dtype
from data.spec import Spec, Task

NAME = "label frequency"
"""No model's: those have no spaces."""
_TRAIN = 0
_AT_ONCE = 4_096


def frequencies(instances: pathlib.Path, spec: Spec) -> dict[str, np.ndarray]:
    """Of the labels that training has, by task: each class's share (binary: of 0 and 1), or a
    regression's mean, float64 [1]. Of a spec with a `domain` the sub-domain's are counted alone, as
    they alone are evaluated; a task without a label to count isn't there.

    Args:
      instances: raw ones, a folder of `Split-*`.
    """
    kinds = {"target_split": tf.int64, "target_per_user": tf.int64}
    kinds |= {task.label_feature: tf.float32 for task in spec.tasks}
    if spec.domain is not None:
        channel = _domain_channel(spec)
        kinds[channel.feature] = _ids(spec, channel)
    parsing = {
        name: tf.io.RaggedFeature(kind, row_splits_dtype=tf.int64) for name, kind in kinds.items()
    }
    found: dict[str, list[np.ndarray]] = {task.name: [] for task in spec.tasks}
    files = sorted(str(path) for path in instances.glob("Split-*/*"))
    for some in tf.data.TFRecordDataset(files, "GZIP").batch(_AT_ONCE):
        parsed = tf.io.parse_example(some, parsing)
        flat = {name: values.flat_values.numpy() for name, values in parsed.items()}
        counted = _counted(flat, spec)
        for task in spec.tasks:
            labels = flat[task.label_feature][counted]
            found[task.name].append(labels[~np.isnan(labels)].astype(np.float64))
    every = {task.name: np.concatenate(found[task.name]) for task in spec.tasks}
    return {t.name: _frequency(t, every[t.name]) for t in spec.tasks if len(every[t.name])}


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


def _counted(flat: dict[str, np.ndarray], spec: Spec) -> np.ndarray:
    """Which targets are trained on and of the kind that is evaluated, bool [N]."""
    train = flat["target_split"] == _TRAIN
    if spec.domain is None:
        return train
    text = flat[_domain_channel(spec).feature].astype(np.bytes_)
    inside = np.isin(text, [value.encode() for value in spec.domain.values])
    return train & (inside | (flat["target_per_user"] > 0))


def _domain_channel(spec: Spec) -> Channel:
    assert spec.domain is not None
    return next(c for c in spec.scope("candidate") if c.name == spec.domain.channel)


def _ids(spec: Spec, channel: Channel) -> tf.DType:
    is_int = isinstance(channel, IdChannel) and id_dtype(spec, channel) == "int"
    return tf.int64 if is_int else tf.string


def _frequency(task: Task, labels: np.ndarray) -> np.ndarray:
    if task.type == "regression":
        return labels.mean(keepdims=True)
    num_classes = len(task.classes or (0, 1))
    return np.bincount(labels.astype(np.int64), minlength=num_classes) / len(labels)
