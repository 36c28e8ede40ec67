"""`:predict` of the REST API: row and columnar format (g3doc/api_rest.md, json_tensor.cc)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import message

from serving import tensors
from serving.errors import ServingError, failed_precondition, invalid
from serving.server import json_values
from serving.server.json_values import is_base64, show, to_array

_BYTES_SUFFIX = "_bytes"


def read_inputs(
    document: Mapping[str, Any], signature: message.Message, inputs: message.Message
) -> bool:
    """Writes a predict request's tensors into `inputs`, a map of TensorProtos.

    Args:
      document: has either `instances` (row format) or `inputs` (columnar).
      signature: the SignatureDef that says the inputs' names and dtypes.

    Returns:
      Whether it is in row format, and so must be the answer.

    Raises:
      ServingError: INVALID_ARGUMENT.
    """
    is_row = "instances" in document
    if is_row and "inputs" in document:
        raise invalid(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of"
            " 'inputs' or 'instances' keys to exist "
        )
    if not is_row and "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    dtypes = {name: info.dtype for name, info in signature.inputs.items()}
    if not dtypes:
        raise invalid("Failed to get input map for signature: it has no inputs")
    read = _read_instances if is_row else _read_columns
    for name, array in read(document, dtypes).items():
        tensors.to_proto(array, inputs[name])
    return is_row


def _read_instances(
    document: Mapping[str, Any], dtypes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {show(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {show(document)} No values in 'instances' array")
    if not _is_named(instances[0]) and len(dtypes) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple"
            " input tensors required as per tensorinfo_map"
        )
    if not _is_named(instances[0]):
        for i, item in enumerate(instances):
            if _is_named(item):
                raise invalid(f"Expecting value/list but got object at item {i} of input list")
        ((name, dtype),) = dtypes.items()
        return {name: _stack(instances, dtype, "")}
    for i, item in enumerate(instances):
        _check_names(i, item, dtypes)
    return {
        name: _stack([item[name] for item in instances], dtype, f" key: {name}")
        for name, dtype in dtypes.items()
    }


def _is_named(item: object) -> bool:
    return isinstance(item, dict) and not is_base64(item)


def _check_names(i: int, item: object, dtypes: Mapping[str, int]) -> None:
    if not isinstance(item, dict) or is_base64(item):
        raise invalid(f"Expecting object but got list at item {i} of input list")
    for name in item:
        if name not in dtypes:
            raise invalid(
                f"Failed to process element: {i} key: {name} of 'instances' list. Error:"
                f" INVALID_ARGUMENT: JSON object: does not have named input: {name}"
            )
    if len(item) != len(dtypes):
        raise invalid(
            f"Failed to process element: {i} of 'instances' list. JSON object: {show(item)}"
            f" must only have keys: {','.join(sorted(dtypes))}, and all of them; missing:"
            f" {','.join(sorted(dtypes.keys() - item.keys()))}"
        )


def _stack(values: list, dtype: int, key: str) -> np.ndarray:
    """The batch of every instance's value; an error names the first instance at fault."""
    try:
        return to_array(values, dtype)
    except ServingError as whole:
        shape = None
        for i, value in enumerate(values):
            where = f"Failed to process element: {i}{key} of 'instances' list. Error:"
            try:
                found = to_array(value, dtype).shape
            except ServingError as error:
                raise invalid(f"{where} {error}") from None
            if shape is not None and found != shape:
                raise invalid(
                    f"{where} INVALID_ARGUMENT: Expecting shape {_dims(shape)}"
                    f" but got: {_dims(found)}"
                ) from None
            shape = found
        raise whole


def _read_columns(document: Mapping[str, Any], dtypes: Mapping[str, int]) -> dict[str, np.ndarray]:
    columns = document["inputs"]
    if not _is_named(columns):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple"
                " input tensors required as per tensorinfo_map"
            )
        return {name: to_array(columns, dtype) for name, dtype in dtypes.items()}
    for name in dtypes:
        if name not in columns:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_array(columns[name], dtype) for name, dtype in dtypes.items()}


def write_outputs(outputs: Mapping[str, message.Message], *, is_row: bool) -> dict[str, Any]:
    """A predict response's JSON object.

    Args:
      outputs: name -> TensorProto.
      is_row: as the request was: one prediction an instance, instead of one tensor an output.

    Raises:
      ServingError: INVALID_ARGUMENT, the outputs have no common batch size;
        FAILED_PRECONDITION, a string output is no text.
    """
    arrays = {name: tensors.to_array(proto) for name, proto in tensors.in_order(outputs)}
    if is_row:
        _check_batch(arrays)
    columns = {name: _to_json(name, array) for name, array in arrays.items()}
    values = list(columns.values())
    if not is_row:
        return {"outputs": values[0] if len(columns) == 1 else columns}
    if len(columns) == 1:
        return {"predictions": values[0]}
    return {
        "predictions": [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    }


def _check_batch(arrays: Mapping[str, np.ndarray]) -> None:
    expected = 0
    for name, array in arrays.items():
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        size = len(array)
        if size < 1:
            raise invalid(f"Tensor name: {name} has invalid batch size: {size}")
        if expected and size != expected:
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {size} expecting: {expected}"
            )
        expected = size


def _to_json(name: str, array: np.ndarray) -> Any:
    """Nested lists that `json.dumps` writes as TF Serving would."""
    if array.dtype == object:
        write = _write_base64 if name.endswith(_BYTES_SUFFIX) else _write_text
        try:
            flat = list(map(write, array.ravel().tolist()))
        except UnicodeDecodeError:
            raise failed_precondition(
                f"output {name} isn't UTF-8 text, so JSON can't hold it; an output whose name ends"
                f" in {_BYTES_SUFFIX} is answered in base64"
            ) from None
        texts = np.empty(array.size, object)
        texts[:] = flat
        return texts.reshape(array.shape).tolist()
    if array.dtype in json_values.EXACT_INTEGERS:
        array = json_values.shortest(array)
    return array.tolist()


def _write_base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _write_text(value: bytes) -> str:
    return value.decode()


def _dims(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
