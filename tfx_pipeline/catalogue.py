"""The items that raw instances name, and instances that are asked about any of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from data.channels import CategoryChannel, Channel, IdChannel
from data.columns import id_dtype
from data.spec import Spec

Candidate = Mapping[str, list]
"""An item's candidate features, as an instance has them."""


def items_of(files: Sequence[str], spec: Spec, item: str) -> dict[str, Candidate]:
    """Every item by its id's text, with the candidate features it has in some target.

    Args:
      files: gzipped TFRecords of raw instances.
      item: the candidate channel that identifies it.
    """
    found: dict[str, Candidate] = {}
    for example in examples_of(files):
        for name, candidate in candidates_of(example, spec, item):
            if name is not None:
                found[name] = candidate
    return found


def candidates_of(
    example: tf.train.Example, spec: Spec, item: str
) -> list[tuple[str | None, Candidate]]:
    """Of each target of an instance: its item's name, None where it has none, and its features."""
    channels = spec.scope("candidate")
    (identity,) = (c.feature for c in channels if c.name == item)
    columns = {c.feature: _per_target(example, c) for c in channels}
    return [
        (_name(*columns[identity][place]), {f: lists[place] for f, lists in columns.items()})
        for place in range(len(columns[identity]))
    ]


def offer(example: tf.train.Example, candidates: Sequence[Candidate], spec: Spec) -> None:
    """Makes `candidates` an instance's targets, which see all of its events."""
    features = example.features.feature
    for name in [n for n in features if n.startswith(("target_", "candidate_", "label_"))]:
        del features[name]
    fill(example, candidates, spec.scope("candidate"), spec)


def fill(
    example: tf.train.Example,
    candidates: Sequence[Candidate],
    channels: Sequence[Channel],
    spec: Spec,
) -> None:
    """Adds what `candidates` have of some candidate channels to an instance without them."""
    features = example.features.feature
    for channel in channels:
        lists = [candidate[channel.feature] for candidate in candidates]
        flat = [value for values in lists for value in values]
        if isinstance(channel, IdChannel) and id_dtype(spec, channel) == "int":
            features[channel.feature].int64_list.value.extend(flat)
        elif isinstance(channel, IdChannel | CategoryChannel):
            features[channel.feature].bytes_list.value.extend(flat)
        else:
            features[channel.feature].float_list.value.extend(flat)
        if getattr(channel, "multi_valued", False):
            features[channel.count_feature].int64_list.value.extend(map(len, lists))


def examples_of(files: Sequence[str]) -> Iterator[tf.train.Example]:
    for record in tf.data.TFRecordDataset(list(files), "GZIP").as_numpy_iterator():
        yield tf.train.Example.FromString(record)


def values_of(example: tf.train.Example, name: str) -> list:
    feature = example.features.feature[name]
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def _name(value: bytes | int) -> str | None:
    if value in (b"", -1):
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def _per_target(example: tf.train.Example, channel: Channel) -> list[list]:
    values = values_of(example, channel.feature)
    if not getattr(channel, "multi_valued", False):
        return [[value] for value in values]
    flat = iter(values)
    return [list(itertools.islice(flat, n)) for n in values_of(example, channel.count_feature)]
