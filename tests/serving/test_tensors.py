"""TensorProto <-> NumPy, against TensorFlow's own functions."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2

from serving import tensors
from serving.protos import TensorProto

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
NUMBERS = st.sampled_from(sorted(tensors.NUMBERS, key=str)).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES)
)
STRINGS = hnp.arrays(object, SHAPES, elements=st.binary(max_size=5), fill=st.nothing())


def theirs(proto) -> tensor_pb2.TensorProto:
    return tensor_pb2.TensorProto.FromString(proto.SerializeToString())


def same(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other, strict=True)


@hypothesis.given(NUMBERS, st.booleans())
def test_tensorflow_reads_what_we_write(array, content):
    same(tf.make_ndarray(theirs(tensors.to_proto(array, content=content))), array)


@hypothesis.given(NUMBERS, st.booleans())
def test_we_read_what_we_write(array, content):
    same(tensors.to_array(tensors.to_proto(array, content=content)), array)


@hypothesis.given(NUMBERS)
def test_we_read_what_tensorflow_writes(array):
    proto = tf.make_tensor_proto(array)
    same(tensors.to_array(TensorProto.FromString(proto.SerializeToString())), array)


@hypothesis.given(STRINGS)
def test_strings(array):
    same(tensors.to_array(tensors.to_proto(array)), array)
    same(tf.make_ndarray(theirs(tensors.to_proto(array))), array)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([128 | number & 127]) + varint(number >> 7)


@hypothesis.given(hnp.arrays(object, SHAPES, elements=st.binary(max_size=300), fill=st.nothing()))
def test_strings_as_content(array):
    values = array.ravel().tolist()
    proto = tensors.to_proto(array)
    proto.tensor_content = b"".join([varint(len(value)) for value in values] + values)
    proto.string_val[:] = [b"not this"] * len(values)
    same(tensors.to_array(proto), array)
    read = tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy()
    assert np.asarray(read, object).tolist() == array.tolist()


LENGTHS = st.sampled_from(
    [b"\x00", b"\x01", b"\x02", b"\x80\x00", b"\x81\x80\x80\x80\x10", b"\xff" * 5]
)


@hypothesis.given(
    st.lists(st.one_of(LENGTHS, st.binary(max_size=3)), min_size=1, max_size=6).map(b"".join),
    st.integers(1, 4),
)
def test_any_content_of_strings_is_read_as_by_tensorflow_or_refused_like_there(content, count):
    hypothesis.assume(content)
    proto = filled(dtype=7, tensor_content=content, shape=[count])
    try:
        expected = tf.io.parse_tensor(proto.SerializeToString(), tf.string).numpy()
    except tf.errors.InvalidArgumentError:
        with pytest.raises(tensors.TensorError, match="tensor_content doesn't"):
            tensors.to_array(proto)
    else:
        assert tensors.to_array(proto).tolist() == expected.tolist()


def test_text_is_utf8():
    assert tensors.to_array(tensors.to_proto(np.array(["é", "b"]))).tolist() == ["é".encode(), b"b"]


def test_big_endian_and_strided_arrays():
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(tensors.to_array(tensors.to_proto(array)), array)


def test_content_is_not_copied():
    proto = tensors.to_proto(np.arange(10_000, dtype=np.int64))
    array = tensors.to_array(proto)
    assert not array.flags.owndata
    assert not array.flags.writeable


def filled(**fields) -> TensorProto:
    proto = TensorProto(**{k: v for k, v in fields.items() if k != "shape"})
    for size in fields["shape"]:
        proto.tensor_shape.dim.add().size = size
    return proto


def test_a_short_list_repeats_its_last_value_as_in_tensorflow():
    proto = filled(dtype=1, float_val=[1.0, 2.0], shape=[2, 3])
    same(tensors.to_array(proto), tf.make_ndarray(theirs(proto)))
    assert tensors.to_array(proto).tolist() == [[1, 2, 2], [2, 2, 2]]


def test_no_values_are_zeros():
    assert tensors.to_array(filled(dtype=9, shape=[2])).tolist() == [0, 0]
    assert tensors.to_array(filled(dtype=7, shape=[2])).tolist() == [b"", b""]


@pytest.mark.parametrize(
    "proto, message",
    [
        (filled(dtype=1, float_val=[1.0, 2.0], shape=[1]), "2 values for shape"),
        (filled(dtype=7, string_val=[b"a", b"b"], shape=[1]), "2 strings for shape"),
        (filled(dtype=1, tensor_content=b"123", shape=[1]), "needs 4"),
        (filled(dtype=7, tensor_content=b"\0", shape=[1 << 40]), "doesn't hold just the strings"),
        (filled(dtype=1, float_val=[1.0], shape=[-1]), "isn't fully known"),
        (filled(dtype=1, float_val=[1.0], shape=[1 << 40]), "larger than the 256 MB"),
        (filled(dtype=7, string_val=[b""], shape=[1 << 40]), "larger than the 256 MB"),
        (filled(dtype=1, shape=[0, 1 << 62, 1 << 62]), "shape"),
        (filled(dtype=1, float_val=[1.0], shape=[1] * 50), "shape"),
        (filled(dtype=8, shape=[1]), "unsupported dtype 8"),
        (filled(dtype=0, shape=[]), "unsupported dtype 0"),
    ],
)
def test_bad_protos(proto, message):
    with pytest.raises(tensors.TensorError, match=message):
        tensors.to_array(proto)


def test_bad_arrays():
    with pytest.raises(tensors.TensorError, match="complex128"):
        tensors.to_proto(np.array([1j]))
    with pytest.raises(tensors.TensorError, match="can't hold 3"):
        tensors.to_proto(np.array(["a", 3], object))


def test_outputs_come_in_one_order():
    outputs = {name: TensorProto() for name in ("vip", "user_id", "click")}
    assert [name for name, _ in tensors.in_order(outputs)] == ["user_id", "click", "vip"]
