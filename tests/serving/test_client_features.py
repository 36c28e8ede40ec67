"""`score`: one user's features, checked against the spec the model itself tells."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client import AsyncClient, Client, ServingError
from serving.client.features import typed_example
from serving.client.signatures import Signature, TensorSpec, typed_inputs
from serving.protos import Example

USER = {
    "user_id": "u1",
    "sequence_item": [3, 4],
    "sequence_tag": [["a", "b"], []],
    "candidate_price": [9, 12.5],
    "context_age": 30,
}


@pytest.fixture(scope="module")
def asking(channels):
    with Client(channels.target) as client:
        yield client


def test_score(asking):
    answer = asking.score("channels", USER)
    np.testing.assert_array_equal(answer["click"], np.float32([9 + 39, 12.5 + 39]))
    assert answer["user_id"] == b"u1"


def test_score_many_pads_nobody(asking, channels):
    users = [{**USER, "user_id": f"u{k}", "candidate_price": [1] * k} for k in (3, 0, 1)]
    answers = asking.score_many("channels", users, outputs=["click"])
    assert [answer["click"].tolist() for answer in answers] == [[40.0] * 3, [], [40.0]]

    async def awaited():
        async with AsyncClient(channels.target) as client:
            return await client.score_many("channels", users), await client.score("channels", USER)

    many, one = asyncio.run(awaited())
    assert [answer["user_id"] for answer in many] == [b"u3", b"u0", b"u1"]
    assert one["click"].tolist() == [48.0, 51.5]


def test_whole_numbers_do_however_they_are_written(asking):
    user = {**USER, "sequence_item": [3.0, 4.0], "candidate_price": [9], "context_age": 30}
    assert asking.score("channels", user)["click"].tolist() == [48.0]


def test_arrays_do_as_well_as_lists(asking):
    user = {
        **USER,
        "sequence_item": np.array([3, 4], np.int32),
        "candidate_price": np.array([9.0, 12.5]),
        "context_age": np.int16(30),
    }
    assert asking.score("channels", user)["click"].tolist() == [48.0, 51.5]


@pytest.mark.parametrize(
    "change, text",
    [
        ({"sequence_itm": [1]}, "no feature 'sequence_itm'; did you mean sequence_item"),
        ({"zzz": [1]}, "no feature 'zzz'; it has: candidate_price, context_age, sequence_item"),
        ({"sequence_item": [1.5, 2]}, "sequence_item: expected int64, got 1.5 (float)"),
        ({"sequence_item": [float("nan"), 2]}, "sequence_item: expected int64, got nan (float)"),
        ({"sequence_item": [float("inf"), 2]}, "sequence_item: expected int64, got inf (float)"),
        ({"sequence_item": ["a", "b"]}, "sequence_item: expected int64, got 'a' (str)"),
        ({"candidate_price": ["9"]}, "candidate_price: expected float32, got '9' (str)"),
        ({"sequence_tag": [["a"], [1]]}, "sequence_tag: expected string, got 1 (int)"),
        ({"sequence_tag": ["a", "b"]}, "sequence_tag: takes a list of values in each place"),
        ({"sequence_item": [[1], [2]]}, "sequence_item: takes one value in each place"),
        ({"sequence_item": [1]}, "one length; got sequence_item 1, sequence_tag 2"),
        ({"target_position": [1]}, "one length; got candidate_price 2, target_position 1"),
        ({"context_age": [1, 2]}, "context_age: takes one value in each place"),
        ({"sequence_item": [2**70, 1]}, "sequence_item: 1180591620717411303424 doesn't fit"),
    ],
)
def test_a_wrong_feature_is_named_before_the_wire(asking, monkeypatch, change, text):
    asking.metadata("channels")
    monkeypatch.setattr(asking._flows, "_send", None)  # sending would fail
    with pytest.raises(ServingError) as error:
        asking.score("channels", {**USER, **change})
    assert error.value.code.name == "INVALID_ARGUMENT"
    assert text in error.value.message


def test_a_model_that_tells_no_features_is_named(client):
    with pytest.raises(ServingError, match="FAILED_PRECONDITION: model 'users' has no signature"):
        client.score("users", USER)


SPECS = {
    "sequence_item": TensorSpec("int64", (None, None)),
    "sequence_price": TensorSpec("float32", (None, None)),
    "sequence_tag": TensorSpec("string", (None, None, None)),
    "context_word": TensorSpec("string", (None,)),
    "context_words": TensorSpec("string", (None, None)),
}
INTS = st.none() | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.none() | st.integers(-100, 100) | st.floats(width=32, allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TEXTS = st.lists(st.none() | TEXT, max_size=3)


@given(st.lists(st.tuples(INTS, FLOATS, TEXTS)), TEXTS, TEXT)
def test_every_event_arrives_with_missing_values_marked(events, words, word):
    items, prices, tags = ([event[i] for event in events] for i in range(3))
    features = {
        "sequence_item": items,
        "sequence_price": prices,
        "sequence_tag": tags,
        "context_word": word,
        "context_words": words,
    }
    read = Example.FromString(typed_example(SPECS, features)).features.feature

    def texts(values):
        return [(v or "").encode() for v in values]

    assert list(read["sequence_item"].int64_list.value) == [-1 if v is None else v for v in items]
    np.testing.assert_array_equal(
        read["sequence_price"].float_list.value,
        np.array([np.nan if v is None else v for v in prices], np.float32),
    )
    assert list(read["sequence_tag"].bytes_list.value) == texts(t for ts in tags for t in ts)
    assert list(read["sequence_tag_count"].int64_list.value) == list(map(len, tags))
    assert list(read["context_word"].bytes_list.value) == texts([word])
    assert list(read["context_words"].bytes_list.value) == texts(words)


def test_a_user_that_is_no_dictionary_is_one_clear_error():
    with pytest.raises(ServingError, match="a user is a dictionary of features, got a list"):
        typed_example({}, [{"user_id": "1"}])


def test_a_dictionary_where_a_serialized_example_belongs_is_one_clear_error():
    signatures = {"s": Signature({"examples": TensorSpec("string", (None,))}, {})}
    with pytest.raises(ServingError, match=r"got a dict; score\(\) takes users"):
        typed_inputs(signatures, "m", "s", {"examples": [{"user_id": "1"}]})
    with pytest.raises(ServingError, match="'examples' is string, got a int"):
        typed_inputs(signatures, "m", "s", {"examples": np.array(["u", 3], object)})
