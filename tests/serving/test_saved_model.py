"""The engine over TensorFlow's C API, against TensorFlow in Python."""

import pathlib
import resource
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.client import example
from serving.errors import ServingError
from serving.server.saved_model import SavedModel


@pytest.fixture(scope="module")
def model(exports):
    loaded = SavedModel(str(exports[2.0]))
    yield loaded
    loaded.close()


def instances(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    made = [
        example(
            {
                "user_id": f"u{i}",
                "sequence_item": rng.integers(0, 100, rng.integers(0, 9)),
                "candidate_price": rng.normal(size=rng.integers(0, 5)),
            }
        )
        for i in range(count)
    ]
    return np.array(made, object)


@pytest.mark.parametrize("signature", ["serving_default", "embed"])
def test_equals_tensorflow(model, exports, signature):
    examples = instances(17)
    got = model.run(signature, [{"examples": examples}])
    loaded = tf.saved_model.load(str(exports[2.0]))
    expected = loaded.signatures[signature](examples=tf.constant(examples))
    assert set(got) == set(expected)
    for name, array in got.items():
        assert array.shape == expected[name].shape
        if array.dtype == object:
            assert array.tolist() == expected[name].numpy().tolist()
        else:
            np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-7)


def test_named_tensors_and_chosen_outputs(model):
    x, y = np.float32([1, 2]), np.float32([10, 20])
    got = model.run("add", [{"y": y, "x": x}], ["difference"])
    assert {name: array.tolist() for name, array in got.items()} == {"difference": [-18, -36]}
    assert list(model.run("add", [{"x": x, "y": y}], ["sum", "difference"])) == [
        "sum",
        "difference",
    ]
    empty = model.run("add", [{"x": x[:0], "y": y[:0]}])
    assert empty["sum"].shape == (0,)


def test_errors_carry_tensorflows_code_and_message(model, tmp_path):
    with pytest.raises(ServingError, match="Could not parse example input") as caught:
        model.run("embed", [{"examples": np.array([b"\xff"], object)}])
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(ServingError, match="Could not find SavedModel") as caught:
        SavedModel(str(tmp_path))
    assert caught.value.code == grpc.StatusCode.NOT_FOUND


def test_threads_run_at_the_same_time_and_don_t_mix(model):
    failures = []

    def ask(i: int) -> None:
        for _ in range(50):
            x = np.full(100 + i, i, np.float32)
            got = model.run("add", [{"x": x, "y": x}])["sum"]
            if got.shape != x.shape or not (got == 4 * i).all():
                failures.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_memory_is_returned(model, exports):
    def work() -> int:
        big = np.ones(1 << 20, np.float32)
        for _ in range(20):
            model.run("add", [{"x": big, "y": big}])
            model.run("embed", [{"examples": instances(20)}])
        for _ in range(3):
            SavedModel(str(exports[1.0])).close()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    work()
    before = work()
    # 20 leaked pairs of 4 MB tensors would be 160 MB.
    assert work() - before < 40 << 20


def test_an_output_of_a_type_we_cant_read_troubles_only_who_asks_for_it(tmp_path):
    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serve(self, x):
            return {"y": 2.0 * x, "z": tf.cast(x, tf.bfloat16)}

    module = Model()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    model = SavedModel(str(tmp_path))
    request = {"x": np.float32([1, 2])}
    assert model.run("serving_default", [request], ["y"])["y"].tolist() == [2.0, 4.0]
    with pytest.raises(ServingError) as caught:
        model.run("serving_default", [request])
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED
    model.close()
