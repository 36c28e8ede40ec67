"""A merged request gets what it would have got alone, whatever the company."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from serving.client import example
from serving.errors import ServingError
from serving.server import contract, merging
from serving.server.batching import Parameters
from serving.server.saved_model import SavedModel
from serving.server.servable import Options, Servable


@pytest.fixture(scope="module")
def model(exports):
    loaded = SavedModel(str(exports[2.0]))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def declared(exports, model):
    return contract.read(str(exports[2.0]), model.signatures).batching


def assert_equal(got, expected):
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        if array.dtype == object:
            assert got[name].tolist() == array.tolist()
        else:
            np.testing.assert_allclose(got[name], array, rtol=1e-6)


floats = st.floats(-4, 4, width=32)
instances = st.builds(
    lambda items, prices: example(
        {"user_id": "u", "sequence_item": items, "candidate_price": prices}
    ),
    st.lists(st.integers(0, 99), max_size=4),
    st.lists(floats, max_size=5),
)
requests = st.lists(st.lists(instances, min_size=1, max_size=3), min_size=1, max_size=5)
sizes = st.sampled_from([(), (4, 8, 64)])


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(requests, sizes, st.sampled_from([("click",), ("vip", "click", "candidates")]))
def test_outputs_padded_to_the_longest_row_are_trimmed(model, declared, batch, allowed, outputs):
    sent = [{"examples": np.array(rows, object)} for rows in batch]
    group = merging.Group("serving_default", outputs, ())
    answers = merging.run_merged(model, group, sent, declared["serving_default"], allowed)
    for request, answer in zip(sent, answers, strict=True):
        assert_equal(answer, model.run("serving_default", [request], outputs))


@st.composite
def pooled(draw):
    rows, width = draw(st.integers(1, 3)), draw(st.integers(0, 4))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    values = draw(st.lists(floats, min_size=rows * width, max_size=rows * width))
    return {
        "values": np.array(values, np.float32).reshape(rows, width)[:, : max(lengths)],
        "lengths": np.array(lengths, np.int64),
    }


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.lists(pooled(), min_size=1, max_size=5), sizes)
def test_inputs_of_unequal_lengths_are_padded(model, declared, sent, allowed):
    group = merging.Group("pool", ("kept", "total"), ())
    answers = merging.run_merged(model, group, sent, declared["pool"], allowed)
    for request, answer in zip(sent, answers, strict=True):
        assert_equal(answer, model.run("pool", [request], ("kept", "total")))


class Counting:
    """The real model, with the number of rows of each run."""

    def __init__(self, model):
        self.model, self.rows = model, []

    def run(self, signature, requests, outputs, held=None):
        self.rows.append(sum(map(merging.num_rows, requests)))
        return self.model.run(signature, requests, outputs, held)


def test_allowed_sizes_round_up(model):
    counting = Counting(model)
    group = merging.Group("add", ("sum",), ())
    for rows in (1, 2, 3, 9):
        x = np.arange(rows, dtype=np.float32)
        (answer,) = merging.run_merged(
            counting, group, [{"x": x, "y": x}], merging.Merging(), (2, 4, 8)
        )
        np.testing.assert_array_equal(answer["sum"], 4 * x)
    assert counting.rows == [2, 2, 4, 9]


def test_which_signatures_are_merged_unless_the_model_says_otherwise(model):
    def merged(**parameters):
        return {
            name
            for name, signature in model.signatures.items()
            if merging.assumed(signature, Parameters(**parameters))
        }

    assert merged() == {"add", "embed", "classify", "regress"}
    padded = merged(pad_variable_length_inputs=True)
    assert padded == set(model.signatures) - {"spin", "__saved_model_init_op"}


def test_only_requests_that_fit_each_other_are_merged():
    rule = merging.Merging(pad=frozenset({"values"}))
    one, two = np.zeros((1, 3)), np.zeros((2, 5))
    assert merging.shapes_of({"values": one}, rule) == merging.shapes_of({"values": two}, rule)
    assert merging.shapes_of({"fixed": one}, rule) != merging.shapes_of({"fixed": two}, rule)
    for alone in ({"x": np.zeros(())}, {"x": np.zeros(0)}, {"x": one, "y": two}):
        assert merging.shapes_of(alone, rule) is None


def test_past_its_deadline_nothing_runs(exports):
    servable = Servable(str(exports[2.0]), Options(warmup=False))
    x = np.zeros(1, np.float32)
    try:
        with pytest.raises(ServingError) as caught:
            servable.run("add", {"x": x, "y": x}, deadline=time.monotonic())
        assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        servable.close()


def test_clients_at_the_same_time_share_runs_and_answers_stay_their_own(exports):
    servable = Servable(str(exports[2.0]), Options())
    try:

        def ask(client):
            for i in range(30):
                x = np.full(1 + i % 3, client, np.float32)
                assert_equal(servable.run("add", {"x": x, "y": x}, ["sum"]), {"sum": 4 * x})
                user = example({"user_id": str(client), "sequence_item": [client] * i})
                answer = servable.run("embed", {"examples": np.array([user], object)})
                assert answer["user_id"].tolist() == [str(client).encode()]
                np.testing.assert_allclose(answer["embedding"][0, 1], 2 * i / 1000, rtol=1e-6)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(ask, range(16)))
    finally:
        servable.close()


def test_malformed_input_fails_its_own_request_only(exports):
    servable = Servable(str(exports[2.0]), Options())
    good = np.array([example({"user_id": "u", "sequence_item": [5]})], object)
    bad = np.array([b"\xff"], object)

    def ask(i):
        for _ in range(20):
            if i % 4:
                assert servable.run("embed", {"examples": good})["embedding"][0, 0] > 0
            else:
                with pytest.raises(ServingError, match="Could not parse example"):
                    servable.run("embed", {"examples": bad})

    try:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(ask, range(12)))
    finally:
        servable.close()
