"""KuaiRand-Pure's test split as evaluation instances, and two simple models that score them.

The instances hold no history: what is measured is the evaluation, not the model. `popularity`
predicts the video's training rate of each action, `noisy` a mixture of it with noise.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pandas as pd
import pyarrow as pa
import tensorflow as tf
import tensorflow_model_analysis as tfma
from apache_beam import Pipeline
from apache_beam.options.pipeline_options import PipelineOptions
from tensorflow_model_analysis.utils import config_util
from tfx_bsl.coders import example_coder
from tfx_bsl.tfxio import tf_example_record

from data.spec import Spec
from modules.metrics.eval_config import eval_config
from tfx_pipeline.evaluation import custom_extractors

LOG = "log_standard_4_25_to_5_08_pure.csv.gz"
_USERS = "user_features_pure.csv.gz"
_TEST_FROM = 20220501
_ACTIONS = {"click": "is_click", "long_view": "long_view", "like": "is_like"}
_PER_USER = {"video_author": "is_video_author", "full_active": "is_full_active"}
MODELS = {"popularity": 1.0, "noisy": 0.2}
"""Model -> the weight of the video's rate in its score, the rest being noise."""


def test_targets(folder: pathlib.Path) -> pd.DataFrame:
    """One row a target, ordered by user; a user's last one is of per-user tasks alone.

    Columns: user_id, activity (training impressions), label_<task> and score_<model>_<task>
    (float32; NaN where a label is missing).
    """
    log = pd.read_csv(folder / LOG).drop_duplicates()
    test = log[log.date >= _TEST_FROM].sort_values("user_id", kind="stable")
    train = log[log.date < _TEST_FROM]
    rng = np.random.default_rng(0)
    users = pd.DataFrame({"user_id": test.user_id.unique()})
    table = pd.read_csv(folder / _USERS)
    table["is_full_active"] = table.user_active_degree == "full_active"
    users = users.merge(table, on="user_id", how="left")

    targets = pd.concat([test[["user_id"]], users[["user_id"]]], ignore_index=True)
    for task, column in _ACTIONS.items():
        rates = train.groupby("video_id")[column].agg(["sum", "count"])
        rates = (rates["sum"] + train[column].mean()) / (rates["count"] + 1)
        rate = test.video_id.map(rates).fillna(train[column].mean())
        targets[f"label_{task}"] = np.r_[test[column], np.full(len(users), np.nan)]
        for model, weight in MODELS.items():
            score = weight * rate + (1 - weight) * rng.random(len(test))
            targets[f"score_{model}_{task}"] = np.r_[score, np.zeros(len(users))]
    for task, column in _PER_USER.items():
        targets[f"label_{task}"] = np.r_[np.full(len(test), np.nan), users[column] == 1]
    targets["activity"] = targets.user_id.map(train.user_id.value_counts()).fillna(0)
    targets = targets.sort_values("user_id", kind="stable").astype(np.float32)
    return targets.astype({"user_id": np.int64, "activity": np.int64})


def write_instances(targets: pd.DataFrame, path: pathlib.Path) -> None:
    """One instance a user, as gzipped TFRecords."""
    count = targets.groupby("user_id").size().to_numpy()
    offsets = pa.array(np.r_[0, count.cumsum()], pa.int32())
    first = offsets.to_numpy()[:-1]
    user_ids = targets.user_id.to_numpy()[first].astype(str).astype(object)
    single = np.arange(len(count) + 1, dtype=np.int32)
    columns = {
        "user_id": pa.ListArray.from_arrays(single, pa.array(user_ids, pa.binary())),
        "user_activity": pa.ListArray.from_arrays(single, targets.activity.to_numpy()[first]),
        "target_split": pa.ListArray.from_arrays(offsets, np.ones(len(targets), np.int64)),
    }
    for name in targets:
        if name.startswith(("label_", "score_")):
            columns[name] = pa.ListArray.from_arrays(offsets, targets[name].to_numpy())
    encoded = example_coder.RecordBatchToExamplesEncoder(None).encode(
        pa.RecordBatch.from_pydict(columns)
    )
    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions("GZIP")) as writer:
        for record in encoded:
            writer.write(record)


def write_model(name: str, folder: pathlib.Path) -> None:
    """A SavedModel whose impression scores stand in the instance; per user it answers 1/2."""
    features = {f"score_{name}_{task}": tf.io.RaggedFeature(tf.float32) for task in _ACTIONS}

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def serve(self, examples):
            parsed = tf.io.parse_example(examples, features)
            scores = {task: parsed[f"score_{name}_{task}"].to_tensor() for task in _ACTIONS}
            half = tf.fill(tf.shape(examples), 0.5)
            return scores | dict.fromkeys(_PER_USER, half)

    model = Model()
    tf.saved_model.save(model, str(folder), signatures={"serving_default": model.serve})


def evaluate(spec: Spec, examples: str, models: list[str], output: str) -> None:
    """What the TFX Evaluator does, without TFX's metadata: candidate first, then baseline."""
    config = config_util.update_eval_config_with_defaults(
        eval_config(spec), has_baseline=len(models) > 1, rubber_stamp=True
    )
    shared = [
        tfma.default_eval_shared_model(path, model_name=model.name, eval_config=config)
        for path, model in zip(models, config.model_specs, strict=True)
    ]
    source = tf_example_record.TFExampleRecord(
        examples, raw_record_column_name=tfma.ARROW_INPUT_COLUMN
    )
    options = PipelineOptions(["--direct_num_workers=1", "--direct_running_mode=in_memory"])
    with Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | source.BeamSource()
            | tfma.ExtractEvaluateAndWriteResults(
                eval_shared_model=shared,
                eval_config=config,
                extractors=custom_extractors(shared, config, None),
                output_path=output,
            )
        )
