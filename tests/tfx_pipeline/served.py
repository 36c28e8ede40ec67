"""A small spec, its instances and a real SavedModel that keeps the serving contract."""

import pathlib

import numpy as np
import tensorflow as tf
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Examples, Model

from data.spec import Spec, parse_spec
from serving.client import example
from tests.serving import saved_models

SPEC: Spec = parse_spec(
    {
        "name": "small",
        "source": {"format": "tabular"},
        "channels": [
            {"name": "item", "scope": "sequence", "kind": "id", "rows": 8},
            {"name": "price", "scope": "candidate", "kind": "dense"},
        ],
        "tasks": [
            {"name": "click", "label": "clicked"},
            {"name": "vip", "label": "is_vip", "per": "user"},
        ],
        "training": {"pretrain": {"epochs": 0}},
    }
)


def instance(user: str, items: list[int], targets: int, last: int = 1) -> bytes:
    return example(
        {
            "user_id": user,
            "sequence_item": items,
            "candidate_price": np.linspace(-1.0, 1.0, targets),
            "target_position": list(range(targets)),
            "window_last": last,
        }
    )


def write_examples(folder: pathlib.Path, splits: dict[str, list[bytes]]) -> Examples:
    """Writes them as an ExampleGen does."""
    examples = Examples()
    examples.uri = str(folder)
    examples.split_names = artifact_utils.encode_split_names(list(splits))
    for name, instances in splits.items():
        split = folder / f"Split-{name}"
        split.mkdir(parents=True)
        file = str(split / "data_tfrecord-00000-of-00001.gz")
        with tf.io.TFRecordWriter(file, "GZIP") as writer:
            for record in instances:
                writer.write(record)
    return examples


def write_model(folder: pathlib.Path, scale: float = 1.0) -> Model:
    """Writes it as a Trainer does."""
    folder.mkdir(parents=True)
    saved_models.write(folder / "Format-Serving", scale)
    model = Model()
    model.uri = str(folder)
    return model
