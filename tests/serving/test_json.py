"""JSON of the REST API into tensors and back, against NumPy."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serving import protos, tensors
from serving.errors import ServingError
from serving.server import json_examples, json_predict, json_values

DTYPES = st.sampled_from(
    ["float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "uint64", "bool"]
)


def text_of(outputs, *, is_row: bool) -> str:
    written = {name: tensors.to_proto(array) for name, array in outputs.items()}
    return json.dumps(json_predict.write_outputs(written, is_row=is_row))


@given(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_side=4))))
def test_what_is_written_is_read_as_it_was(array):
    text = text_of({"a": array}, is_row=False)
    number = tensors.NUMBERS[array.dtype]
    read = json_values.to_array(json.loads(text)["outputs"], number)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@given(st.floats(width=32))
def test_a_float32_is_written_in_its_shortest_digits(value):
    (written,) = json.loads(text_of({"a": np.float32([value])}, is_row=False))["outputs"]
    if math.isfinite(value):
        assert repr(written) == repr(float(str(np.float32(value))))
    assert np.array_equal(np.float32(written), np.float32(value), equal_nan=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "y", "b64", "a"]), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(st.sampled_from(["instances", "inputs", "examples", "context"]), JSON),
    st.dictionaries(st.sampled_from("xy"), st.sampled_from([1, 3, 7, 9, 10])),
)
def test_any_json_is_read_or_refused(document, dtypes):
    signature = protos.message_class("tensorflow.SignatureDef")()
    for name, dtype in dtypes.items():
        signature.inputs[name].dtype = dtype
    document = json_values.parse(json.dumps(document).encode())
    for read in (
        lambda: json_predict.read_inputs(document, signature, protos.PredictRequest().inputs),
        lambda: json_examples.read_examples(document, protos.ClassificationRequest().input),
    ):
        try:
            read()
        except ServingError as error:
            assert error.code.name == "INVALID_ARGUMENT" and error.message


def test_strings_and_bytes():
    outputs = {"name": np.array([b"\xc3\xa9"], object), "image_bytes": np.array([b"\xff"], object)}
    assert json.loads(text_of(outputs, is_row=True)) == {
        "predictions": [{"image_bytes": {"b64": "/w=="}, "name": "é"}]
    }
    with pytest.raises(ServingError, match="output name isn't UTF-8 text"):
        text_of({"name": np.array([b"\xff"], object)}, is_row=True)


def test_rows_need_a_common_batch_size():
    with pytest.raises(ServingError, match="has no shape information"):
        text_of({"a": np.float32(1)}, is_row=True)
    with pytest.raises(ServingError, match="inconsistent batch size: 2 expecting: 1"):
        text_of({"a": np.zeros(1), "b": np.zeros(2)}, is_row=True)
    with pytest.raises(ServingError, match="invalid batch size: 0"):
        text_of({"a": np.zeros(0)}, is_row=True)
