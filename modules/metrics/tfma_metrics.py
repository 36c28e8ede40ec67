"""Metrics for TFMA over blocks of complete users (`target_rows.TargetRows`).

TFMA's own metrics visit one example at a time in Python (its AUC: minutes for 10⁵ targets of a
few tasks). Here a preprocessor turns a whole block into sums before TFMA slices it, and all
that is left to combine is addition: exact, in any order, on any Beam runner.

One `MetricsSpec` is one task: its output name is the task's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import calibration_plot, confusion_matrix_plot, metric_types
from tensorflow_model_analysis.proto import metrics_for_slice_pb2 as results_pb2

from modules.metrics import target_rows
from modules.metrics.gauc import auc_per_group
from modules.metrics.score_histogram import Curve, count_scores, curve, histogram_auc

MODEL, ORACLE = "model", "oracle"
"""Whose predictions a metric judges. The oracle's metrics are named `oracle_…`."""
ORACLE_PREFIX = "oracle_"

_ROC_POINTS = 200
_CALIBRATION_POINTS = 20

Sums = dict[str, Any]
"""Arrays or numbers; those of two blocks add up."""
Results = dict[str, Any]
"""Floats are metrics, protos plots."""


class BinaryMetrics(metric_types.Metric):
    """`auc`, `log_loss`, `mean_label`, `mean_prediction`, `count`; ROC and calibration plots."""

    def __init__(self, name: str = "binary", source: str = MODEL):
        super().__init__(_binary, name=name, source=source)


class GAUC(metric_types.Metric):
    """`gauc` (KEEP eq. 7), and the shares of impressions and users that count in it."""

    def __init__(self, name: str = "gauc", source: str = MODEL):
        super().__init__(_gauc, name=name, source=source)


class MulticlassMetrics(metric_types.Metric):
    """`accuracy`, `log_loss` (nats), `count`; labels are class numbers."""

    def __init__(self, name: str = "multiclass"):
        super().__init__(_multiclass, name=name)


class RegressionMetrics(metric_types.Metric):
    """`mse`, `mae`, `mean_label`, `mean_prediction`, `count`."""

    def __init__(self, name: str = "regression"):
        super().__init__(_regression, name=name)


# TFMA calls these by their argument names.
def _binary(name, source, eval_config, model_names, output_names):
    return _summed(name, source, eval_config, model_names, output_names, binary_sums, _binary_of)


def _gauc(name, source, eval_config, model_names, output_names):
    return _summed(name, source, eval_config, model_names, output_names, gauc_sums, _gauc_of)


def _multiclass(name, eval_config, model_names, output_names):
    return _summed(
        name, MODEL, eval_config, model_names, output_names, multiclass_sums, _multiclass_of
    )


def _regression(name, eval_config, model_names, output_names):
    return _summed(
        name, MODEL, eval_config, model_names, output_names, regression_sums, _regression_of
    )


def binary_sums(user: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> Sums:
    """What the binary metrics need of N labelled targets; sums of blocks add."""
    p = np.clip(prediction.astype(np.float64), 1e-7, 1 - 1e-7)
    return {
        "histogram": count_scores(label, prediction),
        "prediction": prediction.sum(dtype=np.float64),
        "log_loss": -np.log(np.where(label > 0, p, 1 - p)).sum(),
    }


def _binary_of(sums: Sums) -> Results:
    negatives, positives = (float(n) for n in sums["histogram"].sum(axis=1))
    count = negatives + positives
    return {
        "count": count,
        "auc": histogram_auc(sums["histogram"]),
        "log_loss": _mean(sums["log_loss"], count),
        "mean_label": _mean(positives, count),
        "mean_prediction": _mean(sums["prediction"], count),
        confusion_matrix_plot.CONFUSION_MATRIX_PLOT_NAME: _roc(
            curve(sums["histogram"], _ROC_POINTS)
        ),
        calibration_plot.CALIBRATION_PLOT_NAME: _calibration(
            curve(sums["histogram"], _CALIBRATION_POINTS)
        ),
    }


def gauc_sums(user: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> Sums:
    """Numerator and denominator of eq. 7 over the N labelled targets of complete users."""
    auc, count = auc_per_group(user, label, prediction)
    counted = ~np.isnan(auc)
    return {
        "weighted_auc": (auc[counted] * count[counted]).sum(),
        "counted": np.float64(count[counted].sum()),
        "impressions": np.float64(count.sum()),
        "counted_users": np.float64(counted.sum()),
        "users": np.float64(len(count)),
    }


def _gauc_of(sums: Sums) -> Results:
    return {
        "gauc": _mean(sums["weighted_auc"], sums["counted"]),
        "gauc_impression_share": _mean(sums["counted"], sums["impressions"]),
        "gauc_user_share": _mean(sums["counted_users"], sums["users"]),
    }


def multiclass_sums(user: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> Sums:
    """label: [N] class numbers; prediction: [N, classes] probabilities."""
    picked = prediction[np.arange(len(label)), label.astype(np.int64)].astype(np.float64)
    return {
        "count": np.float64(len(label)),
        "correct": np.float64((prediction.argmax(axis=1) == label).sum()),
        "log_loss": -np.log(np.clip(picked, 1e-7, 1.0)).sum(),
    }


def _multiclass_of(sums: Sums) -> Results:
    return {
        "count": float(sums["count"]),
        "accuracy": _mean(sums["correct"], sums["count"]),
        "log_loss": _mean(sums["log_loss"], sums["count"]),
    }


def regression_sums(user: np.ndarray, label: np.ndarray, prediction: np.ndarray) -> Sums:
    """label, prediction: [N]."""
    label, prediction = label.astype(np.float64), prediction.astype(np.float64)
    error = prediction - label
    return {
        "count": np.float64(len(label)),
        "squared": (error**2).sum(),
        "absolute": np.abs(error).sum(),
        "label": label.sum(),
        "prediction": prediction.sum(),
    }


def _regression_of(sums: Sums) -> Results:
    count = sums["count"]
    return {
        "count": float(count),
        "mse": _mean(sums["squared"], count),
        "mae": _mean(sums["absolute"], count),
        "mean_label": _mean(sums["label"], count),
        "mean_prediction": _mean(sums["prediction"], count),
    }


def _mean(total: float, count: float) -> float:
    return float(total / count) if count else float("nan")


def _roc(points: Curve) -> results_pb2.ConfusionMatrixAtThresholds:
    positives, negatives = points.positives.sum(), points.negatives.sum()
    above_positive = positives - np.r_[0, np.cumsum(points.positives)]
    above_negative = negatives - np.r_[0, np.cumsum(points.negatives)]
    matrices = [
        {
            "threshold": threshold,
            "true_positives": tp,
            "false_negatives": positives - tp,
            "false_positives": fp,
            "true_negatives": negatives - fp,
        }
        for threshold, tp, fp in zip(
            np.r_[points.lower, 1.0], above_positive, above_negative, strict=True
        )
    ]
    return results_pb2.ConfusionMatrixAtThresholds(matrices=matrices)


def _calibration(points: Curve) -> results_pb2.CalibrationHistogramBuckets:
    return results_pb2.CalibrationHistogramBuckets(
        buckets=[
            {
                "lower_threshold_inclusive": lower,
                "upper_threshold_exclusive": upper,
                "num_weighted_examples": {"value": negatives + positives},
                "total_weighted_label": {"value": positives},
                "total_weighted_refined_prediction": {"value": score},
            }
            for lower, upper, negatives, positives, score in zip(*points, strict=True)
        ]
    )


class _BlockSums(metric_types.Preprocessor):
    """The sums of one task's labelled targets in a block, for one source of predictions."""

    def __init__(self, name: str, task: str, column: str, sums_of: Callable[..., Sums]):
        super().__init__(name=f"{name}:{column}")
        self._label, self._column, self._sums_of = target_rows.label(task), column, sums_of

    def process(self, extracts: tfma.Extracts) -> Iterator[Sums]:
        user, _, values = extracts[target_rows.EXTRACT_KEY]
        labelled = ~np.isnan(values[self._label])
        predictions = values[self._column][labelled]
        if not np.isfinite(predictions).all():
            raise ValueError(f"{self._column}: a labelled target has no finite value")
        yield self._sums_of(user[labelled], values[self._label][labelled], predictions)


class _Add(beam.CombineFn):
    def __init__(self, results_of: Callable[[Sums], Results], key: metric_types.MetricKey):
        self._results_of, self._key = results_of, key

    def create_accumulator(self) -> Sums:
        return {}

    def add_input(self, accumulator: Sums, sums: Sums) -> Sums:
        return {k: accumulator[k] + v for k, v in sums.items()} if accumulator else sums

    def merge_accumulators(self, accumulators: Iterable[Sums]) -> Sums:
        total: Sums = {}
        for sums in accumulators:
            if sums:
                total = self.add_input(total, sums)
        return total

    def extract_output(self, accumulator: Sums) -> metric_types.MetricsDict:
        output = {}
        for name, value in self._results_of(accumulator).items():
            key = self._key._replace(name=self._key.name + name)
            if isinstance(value, float):
                output[key] = value
            elif not key.name.startswith(ORACLE_PREFIX):  # One plot a task and model.
                output[metric_types.PlotKey(*key)] = value
        return output


def _summed(
    name: str,
    source: str,
    eval_config: tfma.EvalConfig,
    model_names: list[str],
    output_names: list[str],
    sums_of: Callable[..., Sums],
    results_of: Callable[[Sums], Results],
) -> metric_types.MetricComputations:
    """One computation a task and model (the oracle: a task), giving all of `results_of`."""
    baselines = {m.name for m in eval_config.model_specs if m.is_baseline}
    computations = []
    for task in output_names:
        for model in model_names:
            if source == ORACLE and model in baselines:
                continue  # It is the same for both.
            prefix = ORACLE_PREFIX if source == ORACLE else ""
            # Thresholds by name, as in eval_config, look for keys that say nothing of weights.
            key = metric_types.MetricKey(
                prefix, model_name=model, output_name=task, example_weighted=None
            )
            column = (
                target_rows.oracle(task)
                if source == ORACLE
                else target_rows.prediction(task, model)
            )
            computations.append(
                metric_types.MetricComputation(
                    keys=[key._replace(name=prefix + name)],
                    preprocessors=[_BlockSums(name, task, column, sums_of)],
                    combiner=_Add(results_of, key),
                )
            )
    return computations
