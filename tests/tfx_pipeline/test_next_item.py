"""The ranking of held-out items: which queries there are, what they see, and ranks by hand."""

from __future__ import annotations

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from benchmarks.quality import next_item
from benchmarks.quality.next_item import Query
from data.instances import build_instances
from modules.models.user_model import UserModel
from modules.preprocessing import table_rows
from modules.training.export import export
from tests.data.small import event_table, small_spec, user_table
from tfx_pipeline.catalogue import items_of, values_of

USERS, EVENTS, ITEMS = 12, 6, 7


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of instances; event t of user u is of item (u + t) % 7, clicked where t is even."""
    spec = small_spec(sequence={"max_length": 2, "window": 20})
    rows = [
        {
            "user_id": f"u{user}",
            "time_ms": 1000 * (t + 1),
            "item": (user + t) % ITEMS if t != 5 else None,
            "tags": [f"t{i}" for i in range((user + t) % 3)],
            "price": float(10 * user + t),
            "click": str((t + 1) % 2),
        }
        for user in range(USERS)
        for t in range(EVENTS)
    ]
    users = [{"user_id": f"u{user}", "level": "gold"} for user in range(USERS)]
    instances = build_instances(event_table(rows, spec), user_table(users, spec), spec)
    path = str(tmp_path_factory.mktemp("instances") / "0.gz")
    with tf.io.TFRecordWriter(path, "GZIP") as writer:
        for example in RecordBatchToExamplesEncoder().encode(instances):
            writer.write(example)
    held_out = {
        row["user_id"][0].decode() for row in instances.to_pylist() if row["target_split"][0] == 1
    }
    return types.SimpleNamespace(spec=spec, files=[path], held_out=held_out)


def test_the_catalogue_has_every_item_as_it_was_last_shown(written):
    items = items_of(written.files, written.spec, "item")
    assert sorted(items) == [str(item) for item in range(ITEMS)]
    for name, candidate in items.items():
        (price,) = candidate["candidate_price"]
        user, t = divmod(int(price), 10)
        assert candidate["candidate_item"] == [int(name)] == [(user + t) % ITEMS]
        assert candidate["candidate_tags"] == [b"t%d" % i for i in range((user + t) % 3)]


def test_queries_are_held_out_clicks_and_see_what_came_before(written):
    names = list(items_of(written.files, written.spec, "item"))
    queries = next_item.queries_of(written.files, written.spec, "click", "item", names)
    assert 0 < len(written.held_out) < USERS
    asked = set()
    for query in queries:
        (user,) = values_of(query.example, "user_id")
        t = len(values_of(query.example, "sequence_item"))
        number = int(user.decode()[1:])
        asked.add((user.decode(), t))
        assert int(names[query.target]) == (number + t) % ITEMS
        assert values_of(query.example, "sequence_item") == [(number + e) % ITEMS for e in range(t)]
        counts = [(number + e) % 3 for e in range(t)]
        assert values_of(query.example, "sequence_tags_count") == counts
        assert len(values_of(query.example, "sequence_tags")) == sum(counts)
        shown = {names.index(str((number + e) % ITEMS)) for e in range(EVENTS - 1)}
        assert query.shown == shown - {query.target}
        left = query.example.features.feature
        assert not [n for n in left if n.startswith(("target_", "label_")) and values_of(
            query.example, n)]  # fmt: skip
    assert asked == {(user, t) for user in written.held_out for t in (0, 2, 4)}


def test_popularity_is_of_training_clicks_alone(written):
    names = [str(item) for item in range(ITEMS)]
    expected = np.zeros(ITEMS)
    for user in set(range(USERS)) - {int(u[1:]) for u in written.held_out}:
        for t in (0, 2, 4):
            expected[(user + t) % ITEMS] += 1
    found = next_item.popularity(written.files, written.spec, "click", "item", names)
    np.testing.assert_array_equal(found, expected)


def test_ranks_by_hand():
    """Five items, two queries. The first one's 4th was shown to its user, and can't beat it."""
    queries = [Query(None, {}, 1, frozenset([4])), Query(None, {}, 0, frozenset())]
    scores = np.array([[0.3, 0.5, 0.7, 0.1, 0.9], [0.1, 0.2, 0.3, 0.1, 0.0]])
    negatives = np.array([[0, 3], [3, 4]])
    few, every = next_item.evaluate(
        lambda some: scores[[queries.index(q) for q in some]], queries, negatives, 5
    )
    np.testing.assert_array_equal(few, [1, 1.5])
    np.testing.assert_array_equal(every, [2, 3.5])
    assert next_item.measured(few, 1)[:2] == ["0.5000", "0.5000"]
    assert next_item.measured(every, 2) == ["0.5000", "0.2500", f"{0.5 / np.log2(3):.4f}"]


def test_a_sample_has_none_of_what_the_user_was_shown():
    queries = [Query(None, {}, n % 9, frozenset([(n + 1) % 9, (n + 4) % 9])) for n in range(50)]
    drawn = next_item.sampled(queries, 9, 6, np.random.default_rng(0))
    for query, row in zip(queries, drawn, strict=True):
        assert set(row) == set(range(9)) - {query.target} - query.shown


@pytest.mark.slow
@pytest.mark.exhaustive
def test_an_item_gets_the_score_that_its_target_got(transformed, tmp_path):
    """The moment's channels are the query's: asked about its own item as it was shown, a query is
    the target it came from."""
    spec = transformed.spec
    keras.utils.set_random_seed(0)
    model = UserModel(spec, table_rows(spec, transformed.output))
    model(next(iter(transformed.batches("train"))))
    export(model, transformed.output, str(tmp_path))
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    files = [f.replace("/transformed/", "/raw/").replace("*", "0.gz")
             for f in transformed.fn_args.eval_files]  # fmt: skip
    moment = spec.moment_channels([])
    assert [channel.name for channel in moment] == ["gap"]
    names = list(items_of(files, spec, "item"))
    queries = next_item.queries_of(files, spec, "click", "item", names)[:20]
    expected = []
    for example in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator():
        scores = served(examples=tf.constant([example]))["click"].numpy()[0]
        parsed = tf.train.Example.FromString(example)
        labels = np.array(values_of(parsed, "label_click"))
        splits = np.array(values_of(parsed, "target_split"))
        named = np.array(values_of(parsed, "candidate_item")) != -1
        expected += scores[(labels == 1) & (splits == 1) & named].tolist()
    for query, score in zip(queries, expected, strict=False):
        asked = next_item.scorer(served, [query.own], moment, spec, "click")
        np.testing.assert_allclose(asked([query]), [[score]], atol=1e-5)
