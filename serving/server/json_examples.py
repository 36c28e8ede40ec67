"""`:classify` and `:regress` of the REST API (g3doc/api_rest.md, json_tensor.cc)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf import message

from serving.errors import invalid
from serving.server.json_values import is_base64, kind, short, show, to_bytes, to_floats, utf8


def read_examples(document: Mapping[str, Any], sent: message.Message) -> None:
    """Writes a classify or regress request's examples into an `Input`.

    Args:
      document: has `examples`, a list of objects of features, and maybe a `context` for all.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    into = sent.example_list
    if "context" in document:
        into = sent.example_list_with_context
        _read_example(document["context"], into.context)
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {show(document)} When method is classify, key 'examples' is expected"
            " and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(
            f"JSON Value: {show(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise invalid(f"JSON Value: {show(document)} 'examples' value is an empty array")
    for example in examples:
        _read_example(example, into.examples.add())


def _read_example(value: object, example: message.Message) -> None:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {kind(value)}")
    for name, content in value.items():
        feature = example.features.feature[utf8(name).decode()]
        _read_feature(name, content if isinstance(content, list) else [content], feature)


_FEATURE_KINDS = {bool: "int64", int: "int64", float: "float", str: "bytes", dict: "bytes"}


def _read_feature(name: str, values: list, feature: message.Message) -> None:
    types = set(map(type, values))
    for value in values if not types <= set(_FEATURE_KINDS) or dict in types else ():
        if type(value) not in _FEATURE_KINDS or isinstance(value, dict) and not is_base64(value):
            raise invalid(f"Feature: {name} has element with unexpected JSON type: {kind(value)}")
    kinds = {_FEATURE_KINDS[found] for found in types}
    if len(kinds) > 1:
        first = _FEATURE_KINDS[type(values[0])]
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {first}")
    if kinds == {"bytes"}:
        feature.bytes_list.value.extend(map(to_bytes, values))
    elif kinds == {"float"}:
        feature.float_list.value.extend(to_floats(values, np.dtype(np.float32)).tolist())
    elif kinds:
        if not -(2**63) <= min(values) <= max(values) < 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        feature.int64_list.value.extend(values)


def write_classifications(result: message.Message) -> dict[str, Any]:
    """A ClassificationResult's JSON object: a list of [label, score] an example."""
    return {
        "results": [
            [[item.label, short(item.score)] for item in classes.classes]
            for classes in result.classifications
        ]
    }


def write_regressions(result: message.Message) -> dict[str, Any]:
    """A RegressionResult's JSON object: a value an example."""
    return {"results": [short(item.value) for item in result.regressions]}
