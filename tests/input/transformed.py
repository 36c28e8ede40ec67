"""Files as Transform leaves them, of random instances that `context_age` numbers, two a user."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow_transform.tf_metadata import metadata_io, schema_utils

from data.spec import Spec
from tests.modules.conftest import make_spec, random_instances

_LIST = {tf.float32: "float_list", tf.int64: "int64_list", tf.string: "bytes_list"}


@dataclasses.dataclass(frozen=True)
class Transformed:
    spec: Spec
    output: tft.TFTransformOutput
    files: list[str]
    num_events: np.ndarray
    """Training events of every instance."""
    num_targets: np.ndarray
    """Training targets of every instance."""

    def kept(self, min_events: int, min_targets: int) -> list[int]:
        keep = (self.num_events >= min_events) & (self.num_targets >= min_targets)
        return np.flatnonzero(keep).tolist()


def write_transformed(folder: pathlib.Path, num_instances: int, num_files: int = 3) -> Transformed:
    spec = make_spec()
    rng = np.random.default_rng(num_instances)
    num_events = rng.integers(0, 20, num_instances).tolist()
    num_targets = rng.integers(0, 6, num_instances).tolist()
    features = random_instances(spec, num_events, num_targets, seed=1)
    ages = np.arange(num_instances, dtype=np.float32)
    features["context_age"] = tf.RaggedTensor.from_row_lengths(ages, np.ones_like(ages, np.int64))
    users = [f"u{number // 2}" for number in range(num_instances)]
    features["user_id"] = tf.RaggedTensor.from_row_lengths(users, np.ones_like(ages, np.int64))
    schema = schema_utils.schema_from_feature_spec({k: _kind(k, v) for k, v in features.items()})
    metadata_io.write_metadata(
        tft.DatasetMetadata(schema),
        str(folder / "graph" / tft.TFTransformOutput.TRANSFORMED_METADATA_DIR),
    )
    columns = {name: value.to_list() for name, value in features.items()}
    kinds = {name: _LIST[value.dtype] for name, value in features.items()}
    rows = ({k: v[i] for k, v in columns.items()} for i in range(num_instances))
    examples = [_example(row, kinds) for row in rows]
    files = [str(folder / f"transformed-{i}.gz") for i in range(num_files)]
    for path, part in zip(
        files, np.array_split(np.array(examples, object), num_files), strict=True
    ):
        with tf.io.TFRecordWriter(path, "GZIP") as writer:
            for example in part:
                writer.write(example)
    return Transformed(
        spec=spec,
        output=tft.TFTransformOutput(str(folder / "graph")),
        files=files,
        num_events=np.array(columns["train_length"]).ravel(),
        num_targets=np.array([s.count(0) for s in columns["target_split"]]),
    )


def _kind(name: str, value: tf.RaggedTensor) -> tf.io.RaggedFeature | tf.io.FixedLenFeature:
    if name in ("train_length", "user_id") or name.startswith("context_"):
        return tf.io.FixedLenFeature([1], value.dtype)
    return tf.io.RaggedFeature(value.dtype, value_key=name, row_splits_dtype=tf.int64)


def _example(row: dict[str, list], kinds: dict[str, str]) -> bytes:
    example = tf.train.Example()
    for name, values in row.items():
        getattr(example.features.feature[name], kinds[name]).value.extend(values)
    return example.SerializeToString()
