"""The spec as TFMA's evaluation config: what is measured, in which slices, what is blessed."""

from __future__ import annotations

import json

import tensorflow_model_analysis as tfma
from google.protobuf import wrappers_pb2
from tensorflow_model_analysis.proto import config_pb2

from data.spec import Spec, Task
from modules.metrics import activity, tfma_metrics

_METRICS = {
    "binary": tfma_metrics.BinaryMetrics,
    "multiclass": tfma_metrics.MulticlassMetrics,
    "regression": tfma_metrics.RegressionMetrics,
}


def eval_config(spec: Spec) -> tfma.EvalConfig:
    """Every task's metrics, overall and by user activity, and the thresholds of blessing.

    One unnamed model: TFX adds the baseline beside it where there is a blessed one, and drops
    the comparison with it where there isn't (the absolute thresholds stay).

    Thresholds hold for the overall slice only; TFMA's shorter way of stating them, on the
    metric, would hold for each slice.
    """
    slices = [tfma.SlicingSpec()] + [
        tfma.SlicingSpec(feature_values={activity.SLICE_FEATURE: name})
        for name in activity.bucket_names(spec.evaluation.activity_edges)
    ]
    return tfma.EvalConfig(
        # The type is given, or TFMA would load the model as a Keras one to find out.
        model_specs=[tfma.ModelSpec(model_type="tf_generic", signature_name="serving_default")],
        slicing_specs=slices,
        metrics_specs=[_metrics_spec(task) for task in spec.tasks],
        options=tfma.Options(include_default_metrics=wrappers_pb2.BoolValue(value=False)),
    )


def _metrics_spec(task: Task) -> tfma.MetricsSpec:
    sources = [tfma_metrics.MODEL] + [tfma_metrics.ORACLE] * (task.oracle is not None)
    if task.type != "binary":
        metrics = [_metric(_METRICS[task.type])]
    else:
        metrics = [_metric(tfma_metrics.BinaryMetrics, source=s) for s in sources]
        if _has_gauc(task):
            metrics += [_metric(tfma_metrics.GAUC, source=s) for s in sources]
    return tfma.MetricsSpec(
        output_names=[task.name], metrics=metrics, per_slice_thresholds=_thresholds(task)
    )


def _has_gauc(task: Task) -> bool:
    return task.group_by is not None and task.per == "impression"  # A user has one of the others.


def _metric(metric: type, **config: str) -> tfma.MetricConfig:
    return tfma.MetricConfig(
        class_name=metric.__name__, module=metric.__module__, config=json.dumps(config)
    )


def _thresholds(task: Task) -> dict[str, config_pb2.PerSliceMetricThresholds]:
    allowed = task.thresholds.max_loss_vs_blessed
    if task.type == "regression":
        return {"mse": _overall(_at_most_grown_by(allowed))}
    if task.type == "multiclass":
        return {"accuracy": _overall(_at_least(0.0, allowed))}
    thresholds = {"auc": _overall(_at_least(task.thresholds.min_auc or 0.0, allowed))}
    if _has_gauc(task):
        thresholds["gauc"] = _overall(_at_least(task.thresholds.min_gauc or 0.0, allowed))
    return thresholds


def _at_least(floor: float, allowed_loss: float) -> tfma.MetricThreshold:
    # A floor of 0 still says something: a metric that can't be computed (NaN) isn't blessed.
    return tfma.MetricThreshold(
        value_threshold=tfma.GenericValueThreshold(
            lower_bound=wrappers_pb2.DoubleValue(value=floor)
        ),
        change_threshold=tfma.GenericChangeThreshold(
            direction=tfma.MetricDirection.HIGHER_IS_BETTER,
            absolute=wrappers_pb2.DoubleValue(value=-allowed_loss),
        ),
    )


def _at_most_grown_by(fraction: float) -> tfma.MetricThreshold:
    return tfma.MetricThreshold(
        value_threshold=tfma.GenericValueThreshold(lower_bound=wrappers_pb2.DoubleValue(value=0.0)),
        change_threshold=tfma.GenericChangeThreshold(
            direction=tfma.MetricDirection.LOWER_IS_BETTER,
            relative=wrappers_pb2.DoubleValue(value=fraction),
        ),
    )


def _overall(threshold: tfma.MetricThreshold) -> config_pb2.PerSliceMetricThresholds:
    overall = tfma.PerSliceMetricThreshold(slicing_specs=[tfma.SlicingSpec()], threshold=threshold)
    return config_pb2.PerSliceMetricThresholds(thresholds=[overall])
