"""Is this data fit to train on? Statistics against the schema and the last accepted run.

TFDV compares types, closed vocabularies, presence and distributions. It doesn't know that in
an instance '' , -1, NaN and a count of 0 mean missing, so their shares are compared here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from data.channels import Channel, DenseChannel
from data.schema import TRAINING
from data.spec import Spec

MISSING_NOISE = 0.01
"""Changes of a missing share below this aren't drift."""

_REMEDIES = {
    anomalies_pb2.AnomalyInfo.ENUM_TYPE_UNEXPECTED_STRING_VALUES: "add them to its 'values'",
    anomalies_pb2.AnomalyInfo.COMPARATOR_L_INFTY_HIGH: "raise validation.max_category_drift",
    anomalies_pb2.AnomalyInfo.COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH: (
        "raise validation.max_dense_drift"
    ),
}
"""What to change in the spec where data that TFDV objects to is meant."""

Statistics: TypeAlias = statistics_pb2.DatasetFeatureStatisticsList
Anomalies: TypeAlias = anomalies_pb2.Anomalies


def split_anomalies(
    current: Statistics, previous: Statistics | None, schema: schema_pb2.Schema
) -> Anomalies:
    """What TFDV finds in one file split: against the schema, and drift against `previous`.

    A split without instances (a time split may put all of them in the other one) has none.
    """
    if not _num_examples(current):
        return Anomalies(baseline=schema)
    if previous is not None and not _num_examples(previous):
        previous = None
    return tfdv.validate_statistics(
        _without_nan(current),
        schema,
        environment=TRAINING,
        previous_statistics=None if previous is None else _without_nan(previous),
    )


def missing_anomalies(
    current: Iterable[Statistics], previous: Iterable[Statistics], spec: Spec
) -> dict[str, str]:
    """Channels with too many missing values, or a share of them that moved too far.

    Args:
      current: statistics of all file splits; taken together.
      previous: those of the last accepted run; empty if there is none.
      spec: gives `max_missing` of each channel and `validation.max_missing_drift`.

    Returns:
      Feature -> reason.
    """
    shares, before = missing_shares(current, spec), missing_shares(previous, spec)
    reasons = {}
    for channel in spec.channels:
        share, old = shares.get(channel.feature), before.get(channel.feature)
        if share is None:
            continue
        if share > channel.max_missing:
            reasons[channel.feature] = (
                f"{share:.1%} of the values are missing, over max_missing {channel.max_missing:.1%}"
            )
        elif old is not None and _drifted(share, old, spec.validation.max_missing_drift):
            reasons[channel.feature] = (
                f"missing values went from {old:.1%} to {share:.1%}, over"
                f" validation.max_missing_drift {spec.validation.max_missing_drift:.0%}"
            )
    return reasons


def add_anomalies(anomalies: Anomalies, reasons: dict[str, str]) -> None:
    """Adds a reason for each feature, in place."""
    for feature, reason in reasons.items():
        info = anomalies.anomaly_info[feature]
        info.severity = anomalies_pb2.AnomalyInfo.ERROR
        info.path.step[:] = [feature]
        info.description = f"{info.description} {reason}".strip()
        info.short_description = info.short_description or "Missing values"


def reasons(anomalies: Anomalies) -> list[str]:
    """`feature: what is wrong`, one each, with the key of the spec that allows it."""
    found = [
        f"{name}: {info.description.strip()}{_remedy(info)}"
        for name, info in sorted(anomalies.anomaly_info.items())
    ]
    if anomalies.HasField("dataset_anomaly_info"):
        found.append(f"dataset: {anomalies.dataset_anomaly_info.description}")
    return found


def _remedy(info: anomalies_pb2.AnomalyInfo) -> str:
    known = [_REMEDIES[reason.type] for reason in info.reason if reason.type in _REMEDIES]
    return f" (if that is meant: {'; '.join(known)})" if known else ""


def missing_shares(statistics: Iterable[Statistics], spec: Spec) -> dict[str, float]:
    """Feature -> share of missing values, over all given statistics.

    A per-user target has no candidate by nature: it doesn't count. Features that have no
    values, or another type than the spec's, aren't in the result.
    """
    missing: dict[str, float] = {}
    total: dict[str, float] = {}
    for one in statistics:
        features = {f.path.step[0]: f for d in one.datasets for f in d.features}
        per_user = _ones(features.get("target_per_user"))
        for channel in spec.channels:
            counts = _missing_of_total(channel, features)
            if counts is None:
                continue
            nature = per_user if channel.scope == "candidate" else 0
            missing[channel.feature] = missing.get(channel.feature, 0) + counts[0] - nature
            total[channel.feature] = total.get(channel.feature, 0) + counts[1] - nature
    return {name: missing[name] / count for name, count in total.items() if count > 0}


def _without_nan(statistics: Statistics) -> Statistics:
    """TFDV 1.16 adds the share of NaN to the Jensen–Shannon divergence, even of equal data."""
    copy = Statistics()
    copy.CopyFrom(statistics)
    for feature in (f for dataset in copy.datasets for f in dataset.features):
        for histogram in feature.num_stats.histograms if feature.HasField("num_stats") else ():
            histogram.num_nan = 0
    return copy


def _drifted(share: float, old: float, limit: float) -> bool:
    change = abs(share - old)
    return change >= MISSING_NOISE and change > limit * old


def _missing_of_total(channel: Channel, features: dict) -> tuple[float, float] | None:
    if not isinstance(channel, DenseChannel) and channel.multi_valued:
        counts = features.get(channel.count_feature)
        if counts is None:
            return None
        return counts.num_stats.num_zeros, _total(counts)
    feature = features.get(channel.feature)
    if feature is None:
        return None
    if feature.HasField("string_stats"):
        return _frequency(feature, ("", "-1")), _total(feature)
    if isinstance(channel, DenseChannel):
        histograms = feature.num_stats.histograms
        return (histograms[0].num_nan if histograms else 0), _total(feature)
    return None


def _frequency(feature: statistics_pb2.FeatureNameStatistics, values: tuple[str, ...]) -> float:
    """Of the most frequent 1000 values; a rarer one counts as never."""
    buckets = feature.string_stats.rank_histogram.buckets
    return sum(bucket.sample_count for bucket in buckets if bucket.label in values)


def _ones(feature: statistics_pb2.FeatureNameStatistics | None) -> float:
    return 0 if feature is None else _total(feature) - feature.num_stats.num_zeros


def _total(feature: statistics_pb2.FeatureNameStatistics) -> float:
    stats = feature.string_stats if feature.HasField("string_stats") else feature.num_stats
    return stats.common_stats.tot_num_values


def _num_examples(statistics: Statistics) -> int:
    return sum(dataset.num_examples for dataset in statistics.datasets)
