"""Plain values to tf.Example, read back by TensorFlow; instance files."""

import gzip
import json
import math
import pathlib
import struct

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from serving.client import ExampleError, example
from serving.client.instances import InstancesError, open_instances, read_instances


def read(path: pathlib.Path) -> list[bytes]:
    with open_instances(str(path)) as file:
        return list(read_instances(file))


def features(serialized: bytes) -> dict[str, list]:
    parsed = tf.train.Example.FromString(serialized).features.feature
    return {name: list(getattr(f, f.WhichOneof("kind")).value) for name, f in parsed.items()}


@hypothesis.given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
        | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4)
        | st.lists(st.binary(max_size=6), min_size=1, max_size=4),
        max_size=4,
    )
)
def test_round_trip(values):
    assert features(example(values)) == values


def test_kinds():
    got = features(
        example(
            {
                "user_id": "ü",
                "flag": True,
                "mixed": [1, 0.5],
                "array": np.array([3, 4], np.int32),
                "scalar": np.float32(0.5),
                "texts": np.array(["a", "b"]),
            }
        )
    )
    assert got == {
        "user_id": ["ü".encode()],
        "flag": [1],
        "mixed": [1.0, 0.5],
        "array": [3, 4],
        "scalar": [0.5],
        "texts": [b"a", b"b"],
    }


def test_missing_values():
    got = features(example({"t": ["a", None], "i": [7, None], "f": [0.5, None], "n": None}))
    assert got["t"] == [b"a", b""]
    assert got["i"] == [7, -1]
    assert got["f"][0] == 0.5 and math.isnan(got["f"][1])
    assert "n" not in got
    assert features(example({"empty": []})) == {}


@pytest.mark.parametrize("value", [[[1], [2]], ["a", 1], [None], {"a": 1}, [2**63]])
def test_bad_values_name_the_feature(value):
    with pytest.raises(ExampleError, match="items"):
        example({"items": value})


INSTANCES = [{"user_id": ["a"], "x": [1, 2]}, {"user_id": ["b"], "x": [3]}]


def test_json_lines(tmp_path, monkeypatch):
    text = "\n".join(map(json.dumps, INSTANCES)) + "\n\n"
    (tmp_path / "a.jsonl").write_text(text)
    expected = [example(i) for i in INSTANCES]
    assert read(tmp_path / "a.jsonl") == expected
    with open(tmp_path / "a.jsonl") as stdin, monkeypatch.context() as patched:
        patched.setattr("sys.stdin", stdin)
        with open_instances("-") as file:
            assert list(read_instances(file)) == expected


@pytest.mark.parametrize(
    "name, compression", [("a.tfrecord", ""), ("a.tfrecord.gz", "GZIP"), ("b_tfrecord-0", "GZIP")]
)
def test_tf_records(tmp_path, name, compression):
    expected = [example(i) for i in INSTANCES]
    with tf.io.TFRecordWriter(str(tmp_path / name), compression) as writer:
        for instance in expected:
            writer.write(instance)
    assert read(tmp_path / name) == expected


def test_bad_files(tmp_path):
    with pytest.raises(InstancesError, match="No such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n{"x": \n')
    with pytest.raises(InstancesError, match=r"a\.jsonl, line 2: not JSON: one user a line"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "users.parquet").write_bytes(b"PAR1\x15\x04\x15\xd0\x0f\x15\xc6")
    with pytest.raises(InstancesError, match=r"users\.parquet, line 1: not JSON: .*TFRecords"):
        read(tmp_path / "users.parquet")
    (tmp_path / "half.jsonl").write_bytes(b'{"x": "\xed\xa0\x80"}\n')  # half a surrogate pair
    with pytest.raises(InstancesError, match=r"half\.jsonl, line 1: not JSON"):
        read(tmp_path / "half.jsonl")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(InstancesError, match="one JSON object a line"):
        read(tmp_path / "list.jsonl")
    record = struct.pack("<Q", 100) + b"0000" + b"short"
    (tmp_path / "cut.tfrecord").write_bytes(record)
    with pytest.raises(InstancesError, match="ends within a record"):
        read(tmp_path / "cut.tfrecord")
    (tmp_path / "cut.tfrecord.gz").write_bytes(gzip.compress(record)[:-6])
    with pytest.raises(InstancesError, match="can't be read"):
        read(tmp_path / "cut.tfrecord.gz")
