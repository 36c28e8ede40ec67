"""Thresholds hold for all users only, and each task is measured by what fits its type."""

import json

import pytest
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_specs
from tensorflow_model_analysis.utils import config_util

from modules.metrics.eval_config import eval_config
from tests.metrics.instances import small_spec


def thresholds(has_baseline):
    config = config_util.update_eval_config_with_defaults(
        eval_config(small_spec()), has_baseline=has_baseline, rubber_stamp=True
    )
    tfma.utils.verify_eval_config(config)
    found = metric_specs.metric_thresholds_from_metrics_specs(config.metrics_specs, config)
    return {
        (key.output_name, key.name, key.is_diff): [
            (slice_ == tfma.SlicingSpec(), threshold) for slice_, threshold in where
        ]
        for key, where in found.items()
        if key.model_name in ("", tfma.CANDIDATE_KEY)
    }


def test_absolute_thresholds_without_a_baseline():
    found = thresholds(has_baseline=False)
    assert {k: [t.lower_bound.value for _, t in v] for k, v in found.items()} == {
        ("click", "auc", False): [0.6],
        ("click", "gauc", False): [0.55],
        ("kind", "accuracy", False): [0.0],
        ("rating", "mse", False): [0.0],
        ("vip", "auc", False): [0.0],
    }


def test_no_loss_against_a_baseline_and_only_overall():
    found = thresholds(has_baseline=True)
    assert all(overall for where in found.values() for overall, _ in where)
    changes = {k[:2]: where[0][1] for k, where in found.items() if k[2]}
    assert set(changes) == {k[:2] for k in found}
    assert changes["click", "gauc"].absolute.value == pytest.approx(-0.005)
    assert changes["rating", "mse"].relative.value == pytest.approx(0.005)
    assert changes["rating", "mse"].direction == tfma.MetricDirection.LOWER_IS_BETTER


def test_slices_and_metrics():
    config = eval_config(small_spec())
    assert [dict(s.feature_values) for s in config.slicing_specs] == [
        {},
        {"user_activity": "[0, 10)"},
        {"user_activity": "[10, 20)"},
        {"user_activity": "20+"},
    ]
    metrics = {
        spec.output_names[0]: [
            (m.class_name, json.loads(m.config).get("source")) for m in spec.metrics
        ]
        for spec in config.metrics_specs
    }
    assert metrics == {
        "click": [
            ("BinaryMetrics", "model"),
            ("BinaryMetrics", "oracle"),
            ("GAUC", "model"),
            ("GAUC", "oracle"),
        ],
        "kind": [("MulticlassMetrics", None)],
        "rating": [("RegressionMetrics", None)],
        "vip": [("BinaryMetrics", "model")],  # One target a user: no GAUC.
    }
