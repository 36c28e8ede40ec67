"""How the stock TFX Evaluator reads instances: `Evaluator(module_path="tfx_pipeline.evaluation")`.

An instance holds K targets, TFMA's extractors know one prediction a record; so these run the
models over whole batches, keep the labelled evaluation targets as arrays, and bring each user's
windows together. Everything after (slices, metrics, thresholds, blessing) is TFMA's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_model_analysis as tfma
from apache_beam.utils import shared
from tensorflow_model_analysis.extractors import slice_key_extractor
from tfx_bsl.tfxio.tensor_adapter import TensorAdapterConfig

from modules.metrics import activity, target_rows, tfma_metrics
from modules.metrics.target_rows import TargetRows

_EVAL_SPLIT = 1
_NUM_SHARDS = 64
"""Users are dealt to this many groups; one group's targets must fit a worker's memory."""
_INSTANCES_PER_CALL = 64
"""Instances a model scores at once: small, as each is padded to the longest."""


class EvalTask(NamedTuple):
    """What is read and predicted of a task."""

    name: str
    multiclass: bool
    oracle: bool


def custom_extractors(
    eval_shared_model: tfma.types.MaybeMultipleEvalSharedModels,
    eval_config: tfma.EvalConfig,
    tensor_adapter_config: TensorAdapterConfig | None,
) -> list[tfma.extractors.Extractor]:
    """What the Evaluator calls: instances -> `TargetRows` of complete users -> slice keys.

    Args:
      eval_shared_model: the candidate, and the baseline where there is one.
      eval_config: of `modules.metrics.eval_config`.
      tensor_adapter_config: unused: records are read by the contract, not by a schema.
    """
    models = eval_shared_model if isinstance(eval_shared_model, list) else [eval_shared_model]
    edges = activity.bucket_edges(
        [
            spec.feature_values[activity.SLICE_FEATURE]
            for spec in eval_config.slicing_specs
            if spec.feature_values
        ]
    )
    tasks = [_task_of(spec) for spec in eval_config.metrics_specs]
    return [
        tfma.extractors.Extractor("ScoreTargets", _ScoreTargets(models, tasks, edges)),
        slice_key_extractor.SliceKeyExtractor(eval_config=eval_config, materialize=False),
    ]


def _task_of(spec: tfma.MetricsSpec) -> EvalTask:
    classes = {metric.class_name for metric in spec.metrics}
    return EvalTask(
        spec.output_names[0],
        multiclass=tfma_metrics.MulticlassMetrics.__name__ in classes,
        oracle=any(f'"{tfma_metrics.ORACLE}"' in metric.config for metric in spec.metrics),
    )


class _ScoreTargets(beam.PTransform):
    def __init__(self, models: list, tasks: list[EvalTask], edges: list[int]):
        super().__init__()
        self._models = {m.model_name: m.model_path for m in models}
        self._tasks, self._edges = tasks, edges

    def expand(self, extracts: beam.PCollection) -> beam.PCollection:
        return (
            extracts
            | "Score" >> beam.ParDo(_Score(self._models, self._tasks))
            | "BringUsersTogether" >> beam.GroupByKey()
            | "SplitByActivity" >> beam.FlatMap(_blocks, self._edges)
        )


def _blocks(shard: tuple[int, Iterable[TargetRows]], edges: list[int]) -> Iterator[tfma.Extracts]:
    """One extract an activity bucket, so that TFMA can slice whole blocks."""
    rows = target_rows.concatenate(list(shard[1]))
    bucket = activity.bucket_of(rows.activity, edges)
    names = activity.bucket_names(edges)
    for i in np.unique(bucket):
        yield {
            target_rows.EXTRACT_KEY: rows.take(bucket == i),
            tfma.FEATURES_KEY: {activity.SLICE_FEATURE: np.array([names[i].encode()])},
        }


class _Score(beam.DoFn):
    """Arrow batch of instances -> (shard of the user, `TargetRows` with every prediction)."""

    def __init__(self, models: dict[str, str], tasks: list[EvalTask]):
        self._models, self._tasks = models, tasks
        self._shared = {name: shared.Shared() for name in models}
        self._targets = beam.metrics.Metrics.counter("evaluation", "targets")

    def setup(self) -> None:
        # A process loads each model once, however many threads score.
        self._loaded = {
            name: self._shared[name].acquire(lambda path=path: tf.saved_model.load(path))
            for name, path in self._models.items()
        }

    def process(self, extracts: tfma.Extracts) -> Iterator[tuple[int, TargetRows]]:
        batch = extracts[tfma.ARROW_RECORD_BATCH_KEY]
        rows, _ = score_targets(batch, self._loaded, self._tasks)
        self._targets.inc(len(rows.user))
        shards = rows.user % _NUM_SHARDS
        for shard in np.unique(shards):
            yield int(shard), rows.take(shards == shard)


def score_targets(
    batch: pa.RecordBatch, models: Mapping[str, Any], tasks: Sequence[EvalTask]
) -> tuple[TargetRows, np.ndarray]:
    """The evaluation targets that have a label, with every model's predictions.

    Args:
      batch: instances, and in `tfma.ARROW_INPUT_COLUMN` each one serialized.
      models: loaded SavedModels by name.

    Returns:
      N targets, and which instance of the batch each belongs to, int64 [N].
    """
    counts, is_eval = _eval_targets(batch)
    instance = np.repeat(np.arange(batch.num_rows), counts)[is_eval]
    values = {}
    for task in tasks:
        values[target_rows.label(task.name)] = _per_target(batch, f"label_{task.name}", counts)[
            is_eval
        ]
        if task.oracle:
            values[target_rows.oracle(task.name)] = _per_target(
                batch, f"oracle_{task.name}", counts
            )[is_eval]
    serialized = batch[tfma.ARROW_INPUT_COLUMN].flatten().to_numpy(zero_copy_only=False)
    for model, loaded in models.items():
        scores = _predict(loaded.signatures["serving_default"], serialized, counts, tasks)
        for task in tasks:
            values[target_rows.prediction(task.name, model)] = scores[task.name][is_eval]
    user = tf.strings.to_hash_bucket_fast(_scalar(batch, "user_id"), 2**63 - 1).numpy()
    rows = TargetRows(user[instance], _scalar(batch, "user_activity")[instance], values)
    labels = [values[target_rows.label(task.name)] for task in tasks]
    labelled = ~np.isnan(labels).all(axis=0)
    return rows.take(labelled), instance[labelled]


def _eval_targets(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """How many targets each instance has [B], and which of all of them are eval's [sum]."""
    lists = _column(batch, "target_split")
    counts = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return counts.astype(np.int64), lists.flatten().to_numpy() == _EVAL_SPLIT


def _per_target(batch: pa.RecordBatch, name: str, counts: np.ndarray) -> np.ndarray:
    lists = _column(batch, name)
    if not np.array_equal(lists.value_lengths().fill_null(0).to_numpy(), counts):
        raise ValueError(f"{name} and target_split of an instance have different lengths")
    return lists.flatten().to_numpy().astype(np.float32)


def _scalar(batch: pa.RecordBatch, name: str) -> np.ndarray:
    values = _column(batch, name).flatten().to_numpy(zero_copy_only=False)
    if len(values) != batch.num_rows:
        raise ValueError(f"{name}: expected one value an instance")
    return values


def _column(batch: pa.RecordBatch, name: str) -> pa.ListArray:
    index = batch.schema.get_field_index(name)
    if index < 0:
        raise ValueError(
            f"the instances have no {name}. Evaluate the examples of SequenceExampleGen (not"
            " Transform's), made with this spec; a schema, if the Evaluator has one, must name it."
        )
    return batch.column(index)


def _predict(
    signature: tf.types.experimental.ConcreteFunction,
    serialized: np.ndarray,
    counts: np.ndarray,
    tasks: Sequence[EvalTask],
) -> dict[str, np.ndarray]:
    """Every task's prediction for every target, float32 [sum(counts)] (or [..., classes])."""
    # Like sized instances together: little padding.
    order = np.argsort([len(s) for s in serialized], kind="stable")
    flat = {task.name: [] for task in tasks}
    for start in range(0, len(order), _INSTANCES_PER_CALL):
        chosen = order[start : start + _INSTANCES_PER_CALL]
        outputs = signature(examples=tf.constant(serialized[chosen]))
        for task in tasks:
            if task.name not in outputs:
                raise ValueError(f"the model has no output {task.name!r}, only {sorted(outputs)}")
            output = outputs[task.name].numpy()
            flat[task.name].append(_flatten(task, output, counts[chosen]))
    # From the order of scoring back to the batch's.
    places = np.argsort(np.repeat(order, counts[order]), kind="stable")
    return {name: np.concatenate(parts)[places] for name, parts in flat.items()}


def _flatten(task: EvalTask, output: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """[b, K(, C)] without padding, or [b(, C)] repeated for each target, as [sum(counts)(, C)]."""
    axes = output.ndim - task.multiclass
    if axes == 1:
        return np.repeat(output, counts, axis=0)
    if axes != 2 or output.shape[1] < counts.max(initial=0):
        raise ValueError(
            f"output {task.name!r} has shape {output.shape}; expected one value an instance, or"
            f" one for each of at least {counts.max(initial=0)} targets"
        )
    return output[np.arange(output.shape[1]) < counts[:, np.newaxis]]
