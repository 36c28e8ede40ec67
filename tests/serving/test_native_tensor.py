"""Arrays into TensorFlow's memory and back, against NumPy."""

import hypothesis
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from serving import tensors
from serving.server import native_tensor
from serving.server.c_api import QUICK


def arrays(dtype, rank):
    shapes = npst.array_shapes(min_dims=rank, max_dims=rank, min_side=0, max_side=4)
    if dtype.hasobject:
        return npst.arrays(dtype, shapes, elements=st.binary(max_size=40), fill=st.just(b""))
    return npst.arrays(dtype, shapes)


@st.composite
def parts(draw):
    dtype = draw(st.sampled_from([*sorted(tensors.NUMBERS, key=str), np.dtype(object)]))
    rank = draw(st.integers(1, 3))
    made = draw(st.lists(arrays(dtype, rank), min_size=1, max_size=4))
    return [array[::-1] if draw(st.booleans()) else array for array in made]


@hypothesis.given(parts())
def test_parts_are_joined_and_padded(arrays):
    tensor = native_tensor.from_arrays(arrays)
    try:
        got = native_tensor.to_array(tensor)
    finally:
        QUICK.TF_DeleteTensor(tensor)
    row = np.max([array.shape[1:] for array in arrays], axis=0).astype(int)
    expected = np.full((sum(map(len, arrays)), *row), b"", object)
    if not arrays[0].dtype.hasobject:
        expected = np.zeros(expected.shape, arrays[0].dtype)
    start = 0
    for array in arrays:
        inner = tuple(map(slice, array.shape[1:]))
        expected[(slice(start, start + len(array)), *inner)] = array
        start += len(array)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@hypothesis.given(st.one_of(*map(npst.from_dtype, tensors.NUMBERS)), st.binary(max_size=40))
def test_scalars(number, text):
    string = np.empty((), object)
    string[()] = text
    for array in (np.array(number), string):
        tensor = native_tensor.from_arrays([array])
        got = native_tensor.to_array(tensor)
        QUICK.TF_DeleteTensor(tensor)
        assert got.shape == () and got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
