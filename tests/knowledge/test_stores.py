"""What both stores promise."""

import re
import threading

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import errors
from serving.knowledge import lookup
from serving.knowledge.store import item_rows, user_category_rows, user_rows

RNG = np.random.default_rng(0)
ID = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def _vectors(rows: int, dim: int = 4) -> np.ndarray:
    return RNG.standard_normal((rows, dim), np.float32)


def _publish_coded(store, version: int, users: list[str], dim: int = 4) -> None:
    """Every number of a version's vectors is its number."""
    store.publish(version, [user_rows(users, np.full((len(users), dim), version, np.float32))])


def _failure(code: grpc.StatusCode, match: str):
    return pytest.raises(errors.ServingError, match=f"^{code.name}: .*{re.escape(match)}")


def test_equation_6(new_store):
    store = new_store()
    u, i, uc = _vectors(2), _vectors(3), _vectors(2, 7)
    rows = [
        user_rows(["u1", "u2"], u),
        user_category_rows(["u1", "u1"], ["c1", "c2"], uc),
        item_rows(["i1", "i2", "i3"], i),
    ]
    store.publish(5, rows)
    answer = lookup(
        store,
        users=["u2", "u1", "u1", "nobody"],
        items=["i3", "i1", "nothing", "i2"],
        categories=["c1", "c2", "c1", "c1"],
    )
    zero = np.zeros_like
    expected = [
        [u[1], i[2], u[1] * i[2], zero(uc[0])],
        [u[0], i[0], u[0] * i[0], uc[1]],
        [u[0], zero(i[0]), zero(u[0]), uc[0]],
        [zero(u[0]), i[1], zero(u[0]), zero(uc[0])],
    ]
    np.testing.assert_array_equal(answer.concatenated(), [np.concatenate(r) for r in expected])
    assert answer.version == 5
    assert answer.found["user"].tolist() == [True, True, True, False]
    assert answer.found["item"].tolist() == [True, True, False, True]
    assert answer.found["user_category"].tolist() == [False, True, True, False]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(users=st.lists(ID, min_size=1, unique=True), asked=st.lists(ID), chunk=st.integers(1, 9))
def test_any_text_is_found_as_in_a_dict(new_store, users, asked, chunk):
    store = new_store(keep=1)
    version = max(store.versions(), default=0) + 1
    vectors = _vectors(len(users), 3)
    starts = range(0, len(users), chunk)
    store.publish(
        version, (user_rows(users[a : a + chunk], vectors[a : a + chunk]) for a in starts)
    )
    reference = dict(zip(users, vectors, strict=True))
    answer = lookup(store, users=[*asked, *users])
    rows = [reference.get(user, np.zeros(3)) for user in [*asked, *users]]
    np.testing.assert_array_equal(answer.vectors["user"], np.array(rows))
    assert answer.found["user"].tolist() == [u in reference for u in [*asked, *users]]


def test_each_version_answers_for_itself_and_the_sixth_drops_the_first(new_store):
    store = new_store()
    for version in (3, 4, 7, 8, 9):
        _publish_coded(store, version, ["u", f"only{version}"], dim=version)
    for version in (3, 4, 7, 8, 9):
        answer = lookup(store, users=["u", "only7"], version=version)
        assert answer.version == version
        assert answer.vectors["user"].shape == (2, version)
        assert answer.vectors["user"][0].tolist() == [version] * version
        assert answer.found["user"].tolist() == [True, version == 7]
    _publish_coded(store, 12, ["u"])
    assert store.versions() == new_store().versions() == (4, 7, 8, 9, 12)
    assert lookup(store, users=["u"]).version == 12
    with _failure(grpc.StatusCode.NOT_FOUND, "no version 3; versions: 4, 7, 8, 9, 12"):
        lookup(store, users=["u"], version=3)


def test_an_empty_store_says_so(new_store):
    with _failure(grpc.StatusCode.NOT_FOUND, "no version is published; versions: none"):
        lookup(new_store(), users=["u"])


@pytest.mark.parametrize("version", [0, -1, 2**63])
def test_a_version_is_a_positive_integer(new_store, version):
    with _failure(grpc.StatusCode.INVALID_ARGUMENT, "positive 64-bit integer"):
        _publish_coded(new_store(), version, ["u"])


def test_a_refused_version_changes_nothing(new_store):
    store = new_store(keep=2)
    _publish_coded(store, 5, ["u"])
    _publish_coded(store, 6, ["u"])
    four, three = np.ones((2, 4), np.float32), np.ones((2, 3), np.float32)
    refused = {
        "published already": (5, [user_rows(["a", "b"], four)]),
        "older than the 2 kept": (4, [user_rows(["a", "b"], four)]),
        "key": (7, [user_rows(["a", "b"], four), user_rows(["c", "a"], four)]),
        "4 floats and of 3": (7, [user_rows(["a", "b"], four), user_rows(["c", "d"], three)]),
        "K_u ⊙ K_i": (7, [user_rows(["a", "b"], four), item_rows(["c", "d"], three)]),
        "no vectors": (7, []),
    }
    for message, (version, rows) in refused.items():
        with _failure(grpc.StatusCode.INVALID_ARGUMENT, message):
            store.publish(version, rows)
        answer = lookup(store, users=["u", "a"])
        assert answer.version == 6
        assert answer.found["user"].tolist() == [True, False]
    _publish_coded(store, 7, ["a"])
    assert lookup(store, users=["u", "a"]).vectors["user"].tolist() == [[0] * 4, [7] * 4]


def test_half_precision_rounds_and_no_more(new_store):
    store, vectors = new_store(dtype="float16"), _vectors(5, 7)
    store.publish(1, [user_rows(list("abcde"), vectors)])
    answer = lookup(new_store(), users=list("edcba")).vectors["user"]
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, vectors[::-1].astype(np.float16))


@pytest.mark.parametrize(
    "dtype, number", [("float16", 70_000), ("float32", np.nan), ("float32", np.inf)]
)
def test_a_number_the_store_cant_hold_is_refused(new_store, dtype, number):
    store = new_store(dtype=dtype)
    with _failure(grpc.StatusCode.INVALID_ARGUMENT, f"{dtype} can't hold"):
        store.publish(1, [user_rows(["u"], np.full((1, 4), number, np.float32))])
    assert store.versions() == ()


def test_a_kind_the_version_lacks_is_missing_and_has_no_product(new_store):
    store = new_store()
    _publish_coded(store, 1, ["u"])
    answer = lookup(store, users=["u"], items=["i"], categories=["c"])
    assert answer.vectors["item"].shape == (1, 0)
    assert not answer.found["item"] and not answer.found["user_category"]
    lacking = "version 1 has no item vectors: publish an export with item_id too"
    with _failure(grpc.StatusCode.FAILED_PRECONDITION, lacking):
        answer.concatenated()


@pytest.mark.parametrize("columns", [{"items": ["i"] * 2}, {"categories": ["c"] * 2}])
def test_a_batch_has_columns_of_one_length(new_store, columns):
    with _failure(grpc.StatusCode.INVALID_ARGUMENT, "as many users as items"):
        lookup(new_store(), users=["u"], **columns)


def test_an_erased_user_is_gone_from_every_version(new_store):
    store, reader = new_store(), new_store()
    for version in (1, 2, 3):
        rows = [
            user_rows(["u", "v"], _vectors(2)),
            user_category_rows(["u", "u", "v"], ["a", f"b{version}", "a"], _vectors(3)),
        ]
        store.publish(version, rows)
    if hasattr(reader, "refresh"):
        reader.refresh()
    assert store.delete_user("u") is True
    assert store.delete_user("u") is False
    for version in (1, 2, 3):
        for each in (reader, store, new_store()):
            answer = lookup(
                each,
                users=["u", "u", "v"],
                categories=["a", f"b{version}", "a"],
                version=version,
            )
            assert answer.found["user"].tolist() == [False, False, True]
            assert answer.found["user_category"].tolist() == [False, False, True]
            assert not answer.vectors["user"][:2].any()
            assert not answer.vectors["user_category"][:2].any()
            assert answer.vectors["user_category"][2].all()


def test_switching_under_load_mixes_no_versions(new_store):
    users = [f"u{i}" for i in range(300)]
    writer, done, seen, wrong = new_store(), threading.Event(), set(), []
    _publish_coded(writer, 1, users)

    def read():
        store = new_store()
        while not done.is_set():
            if hasattr(store, "refresh"):
                store.refresh()
            answer = lookup(store, users=users)
            seen.add(answer.version)
            if (
                not (answer.vectors["user"] == answer.version).all()
                or not answer.found["user"].all()
            ):
                wrong.append(answer)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    try:
        for version in range(2, 14):
            _publish_coded(writer, version, users)
    finally:
        done.set()
        for thread in readers:
            thread.join()
    assert not wrong
    assert len(seen) > 2
