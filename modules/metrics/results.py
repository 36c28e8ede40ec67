"""What an evaluation found, read back from a TFX `ModelEvaluation` artifact."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.proto import metrics_for_slice_pb2, validation_result_pb2

from modules.metrics.tfma_metrics import ORACLE_PREFIX

CANDIDATE, BASELINE = "candidate", "baseline"
OVERALL = "all users"
_NO_LABELS = "the metric can't be computed: the evaluation data lacks a class or has no label"
_NO_GROUPS = "the metric can't be computed: no user has both classes (`group_by: null` drops it)"


@dataclasses.dataclass(frozen=True)
class Curves:
    """Of one task and model, all users."""

    false_positive_rate: np.ndarray
    """float64 [P], falling, with `true_positive_rate`."""
    true_positive_rate: np.ndarray
    predicted: np.ndarray
    """float64 [C], mean prediction of about equally many targets, rising."""
    observed: np.ndarray
    """float64 [C], share of positives among them."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A threshold that wasn't met."""

    task: str
    metric: str
    reason: str

    def __str__(self) -> str:
        return f"{self.task}: {self.metric} {self.reason}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    metrics: dict[tuple[str, str, str], dict[str, float]]
    """(model, task, slice) -> metric -> value; the oracle's are named `oracle_…`."""
    curves: dict[tuple[str, str], Curves]
    """(model, task) -> curves, binary tasks only."""
    blessed: bool
    failures: tuple[Failure, ...]

    def value(self, task: str, metric: str, model: str = CANDIDATE, slice_: str = OVERALL) -> float:
        """NaN where there is none."""
        return self.metrics.get((model, task, slice_), {}).get(metric, math.nan)

    def gap_closed(self, task: str, metric: str = "auc", slice_: str = OVERALL) -> float:
        """The share of the way from chance (0.5) to the oracle; NaN without an oracle."""
        oracle = self.value(task, ORACLE_PREFIX + metric, slice_=slice_)
        return (self.value(task, metric, slice_=slice_) - 0.5) / (oracle - 0.5)

    @property
    def has_baseline(self) -> bool:
        return any(model == BASELINE for model, _, _ in self.metrics)

    @property
    def slices(self) -> tuple[str, ...]:
        """All users first, then the others as they rise."""
        names = {s for _, _, s in self.metrics} - {OVERALL}
        return (OVERALL, *sorted(names, key=lambda n: int(n.strip("[)+").split(",")[0])))


def load_metrics(evaluation_uri: str | pathlib.Path) -> Evaluation:
    """Reads an evaluation.

    Args:
      evaluation_uri: folder of the `evaluation` output of an Evaluator.

    Raises:
      ValueError: it holds no metrics, as no evaluation target had a label.
      FileNotFoundError: there is no evaluation.
    """
    uri = str(evaluation_uri)
    if not pathlib.Path(uri, "eval_config.json").exists():
        raise FileNotFoundError(f"{uri}: no evaluation here")
    metrics: dict[tuple[str, str, str], dict[str, float]] = {}
    for record in tfma.load_metrics(uri):
        for item in record.metric_keys_and_values:
            if item.key.is_diff:
                continue
            place = (_model(item.key), item.key.output_name, _slice_name(record.slice_key))
            metrics.setdefault(place, {})[item.key.name] = item.value.double_value.value
    if not metrics:
        raise ValueError(f"{uri}: no metrics: the evaluation data has no target with a label")
    curves = {
        (_model(item.key), item.key.output_name): _curves(item.value)
        for record in tfma.load_plots(uri)
        if not record.slice_key.single_slice_keys
        for item in record.plot_keys_and_values
    }
    validation = tfma.load_validation_result(uri)
    failures = tuple(
        _failure(f) for s in validation.metric_validations_per_slice for f in s.failures
    )
    return Evaluation(metrics, curves, validation.validation_ok, failures)


def _model(key: metrics_for_slice_pb2.MetricKey | metrics_for_slice_pb2.PlotKey) -> str:
    return key.model_name or CANDIDATE  # A single model has no name.


def _slice_name(key: metrics_for_slice_pb2.SliceKey) -> str:
    return ", ".join(k.bytes_value.decode() for k in key.single_slice_keys) or OVERALL


def _curves(plot: metrics_for_slice_pb2.PlotData) -> Curves:
    roc = plot.confusion_matrix_at_thresholds.matrices
    counts = np.array(
        [(m.true_positives, m.false_negatives, m.false_positives, m.true_negatives) for m in roc]
    )
    tp, fn, fp, tn = counts.T
    buckets = [
        b for b in plot.calibration_histogram_buckets.buckets if b.num_weighted_examples.value
    ]
    number = np.array([b.num_weighted_examples.value for b in buckets])
    with np.errstate(invalid="ignore"):  # Without one class its rate is NaN.
        return Curves(
            fp / (fp + tn),
            tp / (tp + fn),
            np.array([b.total_weighted_refined_prediction.value for b in buckets]) / number,
            np.array([b.total_weighted_label.value for b in buckets]) / number,
        )


def _failure(failure: validation_result_pb2.ValidationFailure) -> Failure:
    key, value = failure.metric_key, failure.metric_value.double_value.value
    threshold = failure.metric_threshold
    if failure.message:
        reason = failure.message
    elif math.isnan(value):
        reason = _NO_GROUPS if key.name == "gauc" else _NO_LABELS
    elif threshold.HasField("value_threshold"):
        reason = f"{value:.4f} is under {threshold.value_threshold.lower_bound.value:.4f}"
    elif threshold.change_threshold.HasField("relative"):
        allowed = threshold.change_threshold.relative.value
        reason = f"grew by {value:.4g}, more than {allowed:.2%} of the last blessed model's"
    else:
        allowed = -threshold.change_threshold.absolute.value
        reason = f"is {-value:.4f} under the last blessed model; {allowed:.4f} is allowed"
    return Failure(key.output_name, key.name, reason)
