"""Shares of missing values: how much is too much, and what moved too far."""

from __future__ import annotations

import pytest
from tensorflow_metadata.proto.v0 import statistics_pb2

from data import validation
from data.schema import schema_of
from data.spec import Spec, parse_spec
from tests.data.small import small_spec


def limited(**max_missing: float) -> Spec:
    raw = small_spec().model_dump(mode="json")
    for channel in raw["channels"]:
        if channel["scope"] == "sequence" and channel["name"] in max_missing:
            channel["max_missing"] = max_missing[channel["name"]]
    return parse_spec(raw)


def statistics(missing: dict[str, int], total: int = 1000) -> validation.Statistics:
    """As TFDV gives them: of a category, an id, a dense channel and a multi-valued one."""
    result = statistics_pb2.DatasetFeatureStatisticsList()
    features = result.datasets.add(num_examples=100).features
    for name, marker in (("sequence_place", ""), ("sequence_item", "-1")):
        stats = features.add()
        stats.path.step.append(name)
        stats.string_stats.common_stats.tot_num_values = total
        buckets = stats.string_stats.rank_histogram.buckets
        buckets.add(label="other", sample_count=total - missing.get(name, 0))
        buckets.add(label=marker, sample_count=missing.get(name, 0))
    price = features.add()
    price.path.step.append("sequence_price")
    price.num_stats.common_stats.tot_num_values = total
    price.num_stats.histograms.add(num_nan=missing.get("sequence_price", 0))
    tags = features.add()
    tags.path.step.append("sequence_tags_count")
    tags.num_stats.common_stats.tot_num_values = total
    tags.num_stats.num_zeros = missing.get("sequence_tags", 0)
    return result


CHANNELS = ("sequence_place", "sequence_item", "sequence_price", "sequence_tags")


@pytest.mark.parametrize("feature", CHANNELS)
@pytest.mark.parametrize(
    ("before", "now", "anomalous"),
    [
        (200, 300, True),  # a 50% rise
        (200, 100, True),
        (200, 250, False),
        (0, 20, True),
        (4, 9, False),  # under one point
        (0, 0, False),
        (500, 500, False),
    ],
)
def test_a_share_that_moves_by_half_is_an_anomaly(feature, before, now, anomalous):
    found = validation.missing_anomalies(
        [statistics({feature: now})], [statistics({feature: before})], small_spec()
    )
    assert set(found) == ({feature} if anomalous else set())
    if anomalous:
        assert f"from {before / 1000:.1%} to {now / 1000:.1%}" in found[feature]


def test_splits_are_taken_together():
    found = validation.missing_shares(
        [statistics({"sequence_item": 10}), statistics({"sequence_item": 90})], small_spec()
    )
    assert found["sequence_item"] == 0.05


@pytest.mark.parametrize("feature", CHANNELS)
def test_max_missing_needs_no_earlier_run(feature):
    spec = limited(**{feature.removeprefix("sequence_"): 0.1})
    assert not validation.missing_anomalies([statistics({feature: 100})], [], spec)
    (reason,) = validation.missing_anomalies([statistics({feature: 101})], [], spec).values()
    assert "10.1% of the values are missing, over max_missing 10.0%" in reason


def test_a_per_user_target_is_no_missing_candidate():
    one = statistics({})
    features = one.datasets[0].features
    price = features.add()
    price.path.step.append("candidate_price")
    price.num_stats.common_stats.tot_num_values = 120
    price.num_stats.histograms.add(num_nan=30)
    per_user = features.add()
    per_user.path.step.append("target_per_user")
    per_user.num_stats.common_stats.tot_num_values = 120
    per_user.num_stats.num_zeros = 100
    assert validation.missing_shares([one], small_spec())["candidate_price"] == 0.1


def _of_column(feature: str, counts: dict[str, int]) -> validation.Statistics:
    result = statistics_pb2.DatasetFeatureStatisticsList()
    dataset = result.datasets.add(num_examples=100)
    stats = dataset.features.add(type=statistics_pb2.FeatureNameStatistics.STRING)
    stats.path.step.append(feature)
    common = stats.string_stats.common_stats
    common.num_non_missing, common.tot_num_values = 100, sum(counts.values())
    common.min_num_values = common.max_num_values = 1
    for value, count in counts.items():
        stats.string_stats.rank_histogram.buckets.add(label=value, sample_count=count)
    return result


@pytest.mark.parametrize(
    ("feature", "before", "now", "remedy"),
    [
        ("sequence_click", {"0": 50, "1": 50}, {"0": 50, "1": 40, "2": 10}, "add them to its 'va"),
        ("sequence_place", {"home": 100}, {"work": 100}, "raise validation.max_category_drift"),
        ("sequence_place", {"home": 100}, {"home": 100}, None),
    ],
)
def test_a_reason_names_the_key_that_allows_it(feature, before, now, remedy):
    found = validation.split_anomalies(
        _of_column(feature, now), _of_column(feature, before), schema_of(small_spec())
    )
    reasons = [line for line in validation.reasons(found) if line.startswith(f"{feature}: ")]
    assert len(reasons) == (remedy is not None)
    assert all(f"(if that is meant: {remedy}" in reason for reason in reasons)
