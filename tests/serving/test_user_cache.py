"""One user, many candidates: encoded once, and the answers are the plain signature's."""

import itertools

import hypothesis
import numpy as np
import pytest
from google.protobuf import message
from hypothesis import strategies as st

from serving.client import example
from serving.errors import ServingError
from serving.protos import Example
from serving.server import contract, example_wire, user_cache
from serving.server.servable import Options, Servable
from tests.serving.saved_models import CONTRACT

OUTPUTS = ("click", "vip")


@pytest.fixture(scope="module")
def servable(exports):
    loaded = Servable(str(exports[2.0]), Options())
    yield loaded
    loaded.close()


class Recorded:
    """A cache over the real model; `signatures` are those that ran."""

    def __init__(self, servable, size=10, seconds=1000.0, **users):
        fields = CONTRACT["users"] | users
        for name in ("user_features", "tower_features", "bypass"):
            fields[name] = frozenset(fields[name])
        self.signatures = []
        self._servable = servable
        self.cache = user_cache.UserCache(contract.Users(**fields), self._run, size, seconds)

    def _run(self, signature, inputs, outputs, deadline):
        self.signatures.append(signature)
        return self._servable.run_signature(signature, inputs, outputs, deadline)

    def ask(self, *serialized, outputs=OUTPUTS):
        """The signatures that ran; checks the answer."""
        inputs = {"examples": np.array(serialized, object)}
        self.signatures.clear()
        got = self.cache.run(inputs, outputs, float("inf"))
        ran = list(self.signatures)
        expected = self._servable.run_signature("serving_default", inputs, outputs)
        assert list(got) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-6)
        return ran


def user(name="u", items=(3, 400), prices=(0.5,), **more):
    features = {"user_id": name, "sequence_item": list(items), "candidate_price": list(prices)}
    return example(features | more)


def test_a_user_seen_before_is_only_scored(servable):
    asked = Recorded(servable)
    assert asked.ask(user()) == ["score_and_embed"]
    assert asked.ask(user(prices=[0.1, 0.2, 0.9])) == ["score"]
    assert (asked.cache.hits, asked.cache.misses) == (1, 1)


def test_another_history_or_user_is_encoded(servable):
    asked = Recorded(servable)
    asked.ask(user())
    assert asked.ask(user(items=[3, 400, 5])) == ["score_and_embed"]
    assert asked.ask(user(name="v")) == ["score_and_embed"]
    assert asked.ask(user(items=[])) == ["score_and_embed"]


def test_a_request_of_several_users_needs_them_all(servable):
    asked = Recorded(servable)
    asked.ask(user("a", [1]), user("b", [2]))
    assert asked.ask(user("b", [2]), user("a", [1], [1.5]), user("b", [2])) == ["score"]
    assert asked.ask(user("a", [1]), user("c", [3])) == ["score_and_embed"]
    assert asked.ask(user("c", [3])) == ["score"]
    assert (asked.cache.hits, asked.cache.misses) == (4, 4)


def test_the_order_of_features_doesn_t_matter(servable):
    asked = Recorded(servable)
    entries = list(example_wire.entries(user()).values())
    for i, order in enumerate(itertools.permutations(entries)):
        ran = asked.ask(example_wire.serialized(order))
        assert ran == (["score"] if i else ["score_and_embed"])


def test_a_position_in_the_past_asks_the_plain_signature(servable):
    asked = Recorded(servable)
    asked.ask(user())
    assert asked.ask(user(target_position=[1])) == ["serving_default"]
    assert asked.ask(user(), user(target_position=[1])) == ["serving_default"]
    empty = Example.FromString(user())
    empty.features.feature["target_position"].int64_list.SetInParent()
    assert asked.ask(empty.SerializeToString()) == ["score"]


def test_a_feature_written_twice_asks_the_plain_signature(servable):
    asked = Recorded(servable)
    asked.ask(user())
    twice = user() + user(items=[9])  # the later one counts
    assert asked.ask(twice) == ["serving_default"]


def test_what_the_towers_need_stays(servable):
    """Were `user_id` not kept for `score`, it would complain of a missing feature."""
    both = ["sequence_item", "user_id"]
    asked = Recorded(servable, user_features=both, tower_features=["user_id"])
    asked.ask(user())
    assert asked.ask(user()) == ["score"]
    dropped = Recorded(servable, user_features=both)
    dropped.ask(user())
    with pytest.raises(ServingError, match="user_id"):
        dropped.ask(user())


def test_the_least_recently_used_goes_first(servable):
    asked = Recorded(servable, size=2)
    asked.ask(user("a"))
    asked.ask(user("b"))
    assert asked.ask(user("a")) == ["score"]
    asked.ask(user("c"))
    assert asked.ask(user("a")) == ["score"]
    assert asked.ask(user("b")) == ["score_and_embed"]


def test_an_embedding_is_kept_for_a_time(servable, monkeypatch):
    asked = Recorded(servable, seconds=60.0)
    now = [1000.0]
    monkeypatch.setattr(user_cache.time, "monotonic", lambda: now[0])
    asked.ask(user())
    now[0] += 59.0
    assert asked.ask(user()) == ["score"]
    now[0] += 2.0
    assert asked.ask(user()) == ["score_and_embed"]


def test_nothing_is_kept_of_a_request_that_fails(servable):
    asked = Recorded(servable)
    broken = example({"user_id": "u", "sequence_item": [b"text"]})
    for _ in range(2):
        with pytest.raises(ServingError, match="Could not parse|Data types don't match"):
            asked.cache.run({"examples": np.array([broken], object)}, OUTPUTS, float("inf"))
        assert asked.signatures[-1] == "score_and_embed"


def test_servables_use_it_by_the_contract(servable, exports):
    inputs = {"examples": np.array([user("servable")], object)}
    hits = servable.users.hits
    first = servable.run("serving_default", inputs)
    second = servable.run("serving_default", inputs)
    assert servable.users.hits == hits + 1
    assert set(first) == set(second) == set(servable.signatures["serving_default"].outputs)
    without = Servable(str(exports[2.0]), Options(user_cache_size=0))
    assert without.users is None
    without.close()


values = st.one_of(
    st.lists(st.integers(-5, 300), max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), max_size=4),
    st.lists(st.binary(max_size=200), max_size=3),
)
examples = st.dictionaries(st.text(max_size=5), values, max_size=5).map(example)


@hypothesis.given(examples)
def test_the_walk_finds_what_protobuf_finds(serialized):
    found = example_wire.entries(serialized)
    assert found is not None
    features = Example.FromString(serialized).features.feature
    assert {name.decode() for name in found} == set(features)
    for name, entry in found.items():
        alone = Example.FromString(example_wire.serialized([entry]))
        assert dict(alone.features.feature) == {name.decode(): features[name.decode()]}
        lists = alone.features.feature[name.decode()].ListFields()
        assert example_wire.is_empty(entry) == (not any(kind.value for _, kind in lists))


@hypothesis.settings(max_examples=400)
@hypothesis.given(examples, st.data())
def test_damaged_bytes_never_mislead_the_walk(serialized, data):
    damaged = bytearray(serialized + data.draw(examples))
    for _ in range(data.draw(st.integers(1, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(0, len(damaged))) :]
    found = example_wire.entries(bytes(damaged))
    if found is None:
        return
    try:
        features = Example.FromString(bytes(damaged)).features.feature
    except message.DecodeError:
        return  # within a value, which is left to TensorFlow
    assert {name.decode() for name in found} == set(features)
    rest = Example.FromString(example_wire.serialized(found.values()))
    assert dict(rest.features.feature) == dict(features)


@hypothesis.given(st.binary(max_size=60))
def test_any_bytes_are_walked_or_left_alone(noise):
    found = example_wire.entries(noise)
    assert found is None or all(entry in noise for entry in found.values())
