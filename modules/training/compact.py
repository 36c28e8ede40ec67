"""A saved graph without what no answer needs: a server reads and prepares less before it answers.

Tracing leaves in every function what was computed and not returned (the auxiliary losses of
training, shapes Keras asked for) and a constant for every place that names one. TensorFlow drops
both when a session first runs a signature; until then each costs memory and time in loading.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

_COLOCATED_WITH = b"loc:@"
_GRADIENT = "_gradient_op_type"


def compact(folder: str) -> None:
    """Rewrites `saved_model.pb` in `folder`: the same answers from fewer operations.

    In every function: operations that neither an output nor a side effect depends on are left
    out, and equal constants become one. Nothing is trained from it, so no operation names a
    gradient of its own: without the functions (`SaveOptions.experimental_custom_gradients`) a
    name only makes TensorFlow warn, with them it keeps every model that was ever loaded.
    """
    path = os.path.join(folder, "saved_model.pb")
    with tf.io.gfile.GFile(path, "rb") as file:
        saved = SavedModel.FromString(file.read())
    for meta_graph in saved.meta_graphs:
        for function in meta_graph.graph_def.library.function:
            _drop_unused(function)
            _merge_constants(function)
            for node in function.node_def:
                node.attr.pop(_GRADIENT, None)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(saved.SerializeToString(deterministic=True))
    write_fingerprint(folder)


def _drop_unused(function: FunctionDef) -> None:
    nodes = {node.name: node for node in function.node_def}
    to_visit = [_operation(output) for output in function.ret.values()]
    to_visit += function.control_ret.values()
    used: set[str] = set()
    while to_visit:
        name = to_visit.pop()
        if name in nodes and name not in used:  # Otherwise it is one of the function's arguments.
            used.add(name)
            to_visit += map(_operation, nodes[name].input)
            to_visit += _colocated(nodes[name])
    _keep(function, [node for node in function.node_def if node.name in used])


def _merge_constants(function: FunctionDef) -> None:
    named = {name for node in function.node_def for name in _colocated(node)}
    first: dict[tuple, str] = {}
    same_as: dict[str, str] = {}
    for node in function.node_def:
        if node.op == "Const" and not node.input and node.name not in named:
            value = node.attr["value"].SerializeToString(deterministic=True)
            same_as[node.name] = first.setdefault((value, node.device), node.name)

    def merged(tensor: str) -> str:
        """`[^]operation[:output:index]`, of the constant that stays."""
        name = _operation(tensor)
        return tensor.replace(name, same_as.get(name, name), 1)

    _keep(function, [n for n in function.node_def if same_as.get(n.name, n.name) == n.name])
    for node in function.node_def:
        node.input[:] = [merged(tensor) for tensor in node.input]
    for outputs in (function.ret, function.control_ret):
        for name, tensor in outputs.items():
            outputs[name] = merged(tensor)


def _keep(function: FunctionDef, nodes: list[NodeDef]) -> None:
    kept = FunctionDef(node_def=nodes)
    function.ClearField("node_def")
    function.MergeFrom(kept)


def _operation(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _colocated(node: NodeDef) -> Iterator[str]:
    """Operations that `node` must be on the device of."""
    for place in node.attr["_class"].list.s if "_class" in node.attr else ():
        if place.startswith(_COLOCATED_WITH):
            yield place.removeprefix(_COLOCATED_WITH).decode()
