"""JSON schemas of Kubernetes' and the training-operator's objects from their own generated models.

`kubeflow-training` and `kubernetes` (both Apache-2.0) carry one class per object, generated from
the OpenAPI documents that the custom resource definition comes from: JSON keys, types, and which
keys must be there. Unknown keys, which a cluster would drop or refuse, are errors here.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import kubernetes.client
from kubeflow import training

Schema = dict[str, Any]
_PRIMITIVES: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "datetime": {"type": "string"},
    "object": {},  # an integer or a string, such as a probe's port
    "Quantity": {"type": ["integer", "string"]},
}


def schema(model: str) -> Schema:
    """Draft 2020-12 schema of an object.

    Args:
      model: its class, such as `KubeflowOrgV1TFJob` or `V1Deployment`.
    """
    definitions: dict[str, Schema] = {}
    root = _of(model, definitions)
    return {**root, "$defs": definitions}


def _of(kind: str, definitions: dict[str, Schema]) -> Schema:
    if kind in _PRIMITIVES:
        return _PRIMITIVES[kind]
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        return {"type": "array", "items": _of(found[1], definitions)}
    if found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return {"type": "object", "additionalProperties": _of(found[1], definitions)}
    if kind not in definitions:
        definitions[kind] = {}  # a model may hold itself
        definitions[kind] = _object(_model(kind), definitions)
    return {"$ref": f"#/$defs/{kind}"}


def _object(model: type, definitions: dict[str, Schema]) -> Schema:
    types, keys = model.openapi_types, model.attribute_map
    return {
        "type": "object",
        "properties": {keys[name]: _of(types[name], definitions) for name in types},
        "required": [keys[name] for name in types if _required(model, name)],
        "additionalProperties": False,
    }


def _model(kind: str) -> type:
    return getattr(training, kind, None) or getattr(kubernetes.client, kind)


def _required(model: type, name: str) -> bool:
    # The generator writes the check into the setter, and nowhere else.
    return f"`{name}`, must not be `None`" in inspect.getsource(getattr(model, name).fset)
