"""The TFMD schema of instances, derived from the spec: types, lengths, closed vocabularies,
allowed drift, and what a serving request may leave out.
"""

from __future__ import annotations

from collections.abc import MutableMapping

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from data.channels import CategoryChannel, Channel, DenseChannel
from data.columns import id_dtype
from data.spec import Spec

TRAINING, SERVING = "TRAINING", "SERVING"
"""Environments: SERVING lacks what only training has (labels, splits, oracles)."""

_INT, _FLOAT, _BYTES = schema_pb2.INT, schema_pb2.FLOAT, schema_pb2.BYTES


def schema_of(spec: Spec) -> schema_pb2.Schema:
    """Schema of the spec's instances (docs/contracts.md).

    Features of one value are dense [B, 1], lists are ragged [B, None].
    """
    schema = schema_pb2.Schema(
        default_environment=[TRAINING, SERVING], represent_variable_length_as_ragged=True
    )
    _add_scalar(schema, "user_id", _BYTES)
    _add_scalar(schema, "sequence_length", _INT)
    for name in ("user_activity", "window_last", "train_length"):
        _training_only(_add_scalar(schema, name, _INT))
    _add_list(schema, "target_position", _INT)
    _training_only(_add_list(schema, "target_split", _INT))
    _training_only(_add_list(schema, "target_per_user", _INT))
    for channel in spec.channels:
        _add_channel(schema, channel, spec)
    for task in spec.tasks:
        _training_only(_add_list(schema, task.label_feature, _FLOAT))
        if task.oracle:
            _training_only(_add_list(schema, task.oracle_feature, _FLOAT))
    return schema


def serving_feature_names(spec: Spec) -> tuple[str, ...]:
    """Features of a request: those that aren't known in training only."""
    return tuple(
        feature.name
        for feature in schema_of(spec).feature
        if SERVING not in feature.not_in_environment
    )


def schema_text(spec: Spec) -> str:
    """`schema_of` as a `schema.pbtxt` holds it."""
    return text_format.MessageToString(schema_of(spec))


def _add_channel(schema: schema_pb2.Schema, channel: Channel, spec: Spec) -> None:
    add = _add_scalar if channel.scope == "context" else _add_list
    if not isinstance(channel, DenseChannel) and channel.multi_valued:
        add(schema, channel.count_feature, _INT)
        feature = _add_list(schema, channel.feature, _type(channel, spec))
    else:
        feature = add(schema, channel.feature, _type(channel, spec))
    if isinstance(channel, DenseChannel):
        limit = spec.validation.max_dense_drift
        feature.drift_comparator.jensen_shannon_divergence.threshold = limit
    elif isinstance(channel, CategoryChannel):
        limit = spec.validation.max_category_drift
        feature.drift_comparator.infinity_norm.threshold = limit
        if channel.values is not None:
            # '' is how an instance says missing.
            values = channel.values if channel.multi_valued else ("", *channel.values)
            schema.string_domain.add(name=channel.feature, value=values)
            feature.domain = channel.feature
    elif feature.type == _INT:
        # Counted by value, as the share of -1 (missing) can't be told from a histogram.
        feature.int_domain.CopyFrom(schema_pb2.IntDomain(min=-1, is_categorical=True))


def _type(channel: Channel, spec: Spec) -> int:
    if isinstance(channel, DenseChannel):
        return _FLOAT
    if isinstance(channel, CategoryChannel) or id_dtype(spec, channel) == "string":
        return _BYTES
    return _INT


def _add_scalar(schema: schema_pb2.Schema, name: str, type_: int) -> schema_pb2.Feature:
    feature = _add(schema, name, type_)
    feature.shape.dim.add(size=1)
    dense = _representations(schema)[name].dense_tensor
    dense.column_name = name
    dense.shape.dim.add(size=1)
    return feature


def _add_list(schema: schema_pb2.Schema, name: str, type_: int) -> schema_pb2.Feature:
    feature = _add(schema, name, type_)
    feature.value_count.min = 0
    _representations(schema)[name].ragged_tensor.feature_path.step.append(name)
    return feature


def _add(schema: schema_pb2.Schema, name: str, type_: int) -> schema_pb2.Feature:
    feature = schema.feature.add(name=name, type=type_)
    feature.presence.min_fraction = 1.0
    feature.presence.min_count = 1
    return feature


def _representations(
    schema: schema_pb2.Schema,
) -> MutableMapping[str, schema_pb2.TensorRepresentation]:
    """A group must list all features: tfx-bsl infers nothing beside it."""
    return schema.tensor_representation_group[""].tensor_representation


def _training_only(feature: schema_pb2.Feature) -> None:
    feature.not_in_environment.append(SERVING)
