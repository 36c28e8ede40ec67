"""The hybrid placement on real parameter servers: order, staleness, stops, deaths and errors."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import Phase
from modules.embeddings.table import EmbeddingTable
from modules.embeddings.tier.connection import clear
from modules.training.placements.hybrid import Hybrid, TierSettings
from modules.training.placements.synchronous import Synchronous
from modules.training.step import Step
from tests.embeddings.parameter_servers import ParameterServers

pytestmark = pytest.mark.slow
ROWS, FIRST_OWN = 200, 100
"""Batch k, and no other, has row FIRST_OWN + k."""
FEATURES = {"item": ("ids",)}
STEPS = 20
PHASE = Phase(batch_size=8, epochs=1, learning_rate=1e-2, table_learning_rate=0.1)
EVERYTHING = {"item": np.arange(ROWS)}


class Model(tf.Module):
    def __init__(self):
        super().__init__()
        self.table = EmbeddingTable(ROWS, 4, name="item", large=True, seed=7)
        self.dense = keras.layers.Dense(1)
        self.dense.build([None, 4])


def joint_loss(model, batch, number):
    """What rows learn depends on the rows."""
    del number
    output = model.dense(model.table(batch["ids"], rows=batch.get("rows_item")))[..., 0]
    return tf.reduce_mean((output - batch["label"]) ** 2), {}


def linear_loss(model, batch, number):
    """What rows learn doesn't depend on them, so that staleness changes nothing."""
    del number
    of_rows = tf.reduce_sum(model.table(batch["ids"], rows=batch.get("rows_item")), axis=-1)
    return tf.reduce_mean(of_rows * batch["label"]) + tf.reduce_sum(model.dense.kernel**2), {}


def batches(epoch, start, stop):
    del epoch

    def batch(number):
        shared = tf.random.stateless_uniform([7], [number, 1], 3, 30, tf.int64)
        label = tf.random.stateless_normal([8], [number, 2])
        return {"ids": tf.concat([[FIRST_OWN + number], shared], axis=0), "label": label}

    return tf.data.Dataset.range(start, stop).map(batch)


def started(placement, loss):
    keras.utils.set_random_seed(0)
    with placement.scope():
        model = Model()
        step = Step(model, lambda batch, number: loss(model, batch, number), PHASE, STEPS)
    placement.start(step, PHASE, batches)
    placement.tables.restore({})
    return placement, model


def train(placement, start=0, stop=STEPS, stop_requested=lambda: False):
    reports = list(placement.steps(0, start, stop, start, stop_requested))
    assert all(report.steps == 1 for report in reports)
    return [float(report.sums["loss"]) for report in reports]


def alone(loss, stop=STEPS):
    """`single`'s losses and its rows [ROWS, 4]."""
    placement, model = started(
        Synchronous(tf.distribute.get_strategy(), FEATURES, report_every=1), loss
    )
    return train(placement, stop=stop), model.table.shards[0].numpy()


@pytest.fixture(scope="module")
def running():
    with ParameterServers(2) as servers:
        yield servers


def wait_for(address):
    deadline = time.monotonic() + 60
    while True:
        try:
            return clear(address)
        except tf.errors.UnavailableError:
            assert time.monotonic() < deadline, f"{address} doesn't come up"
            time.sleep(0.1)


@pytest.fixture
def hybrid(running):
    """Makes placements on empty servers, and closes them."""
    for address in running.addresses:
        wait_for(address)
    made = []

    def make(loss, staleness=0, newest_chunks=lambda: None, report=lambda event, **fields: None):
        settings = TierSettings(tuple(running.addresses), staleness, 2, "float32", "float32")
        strategy = tf.distribute.get_strategy()
        placement = Hybrid(strategy, FEATURES, settings, newest_chunks, report, report_every=1)
        made.append(placement)
        return started(placement, loss)[0]

    yield make
    for placement in made:
        placement.close()


class Watched:
    """A tier's tables; tells, by batch, what begins and what ends."""

    def __init__(self, tables, on=lambda what, number: None):
        self._tables, self._on = tables, on
        self.seen = []

    def _tell(self, what, ids):
        number = int(ids["item"].max()) - FIRST_OWN
        self.seen.append((what, number))
        self._on(what, number)

    def pull(self, ids):
        self._tell("pull", ids)
        return self._tables.pull(ids)

    def push(self, ids, gradients, *, sequence):
        self._tell("push", ids)
        self._tables.push(ids, gradients, sequence=sequence)
        self.seen.append(("pushed", int(ids["item"].max()) - FIRST_OWN))

    def close(self):
        return self._tables.close()


def test_without_staleness_every_step_is_that_of_one_process(hybrid):
    losses, rows = alone(joint_loss)
    placement = hybrid(joint_loss)
    np.testing.assert_allclose(train(placement), losses, atol=1e-5)
    np.testing.assert_allclose(placement.tables.pull(EVERYTHING)["item"], rows, atol=1e-5)


@pytest.mark.parametrize("staleness", [0, 3])
def test_rows_miss_no_more_pushes_than_they_may_and_do_run_ahead(hybrid, staleness):
    placement = hybrid(linear_loss, staleness)
    furthest = threading.Event()

    def on(what, number):
        if (what, number) == ("pull", staleness):
            furthest.set()
        if (what, number) == ("push", 0):
            assert furthest.wait(60)  # it isn't waiting for this push

    watched = placement.tables = Watched(placement.tables, on)
    train(placement)
    pushed = [number for what, number in watched.seen if what == "pushed"]
    assert pushed == list(range(STEPS))
    for at, (what, number) in enumerate(watched.seen):
        if what == "pull":
            done = [n for w, n in watched.seen[:at] if w == "pushed"]
            assert len(done) >= number - staleness
    assert watched.seen[-1] == ("pushed", STEPS - 1)


def test_a_stop_leaves_what_was_reported_applied_once_and_nothing_else(hybrid):
    placement = hybrid(linear_loss, staleness=3)
    asked = iter(range(100))
    losses = train(placement, stop_requested=lambda: next(asked) == 7)
    expected, rows = alone(linear_loss, stop=7)
    assert len(losses) == len(expected) == 7
    np.testing.assert_allclose(placement.tables.pull(EVERYTHING)["item"], rows, atol=1e-5)


def test_training_goes_on_when_a_server_was_killed(hybrid, running, tmp_path):
    _, rows = alone(linear_loss)
    events, chunks = [], {}
    placement = hybrid(
        linear_loss,
        staleness=2,
        newest_chunks=lambda: chunks or None,
        report=lambda event, **fields: events.append((event, fields)),
    )
    train(placement, stop=5)
    saved = placement.tables.save(str(tmp_path))
    placement.tables.end_save(True)
    chunks["item"] = [str(tmp_path / prefix) for prefix in saved["item"]["chunks"]]
    training = placement.steps(0, 5, STEPS, 5, lambda: False)
    next(training)
    running.kill(0)
    running.start(0)
    assert len(list(training)) == STEPS - 6
    assert [event for event, _ in events] == ["shard_lost", "shard_back"]
    assert events[0][1]["shard"] == 0 and events[1][1]["seconds"] > 0
    found = placement.tables.pull(EVERYTHING)["item"]
    np.testing.assert_allclose(found[1::2], rows[1::2], atol=1e-5)  # the other shard's
    own = FIRST_OWN + np.arange(STEPS)
    # Batches 5 to 8 may have been pushed to the server that died, and after the checkpoint.
    kept = own[(own % 2 == 0) & ((own < FIRST_OWN + 5) | (own > FIRST_OWN + 8))]
    np.testing.assert_allclose(found[kept], rows[kept], atol=1e-5)
    placement.close()
    assert events[-1][0] == "tier" and events[-1][1]["restores"] == 3


def _of_training() -> set[threading.Thread]:
    """Threads but for the tier's own, which it starts when it first needs them and keeps."""
    return {t for t in threading.enumerate() if not t.name.startswith("sparse-tier")}


@pytest.mark.parametrize("failing", [("pull", 5), ("push", 5), ("push", STEPS - 1)])
def test_an_error_in_a_thread_ends_training_with_that_error(hybrid, failing):
    placement = hybrid(linear_loss, staleness=2)
    train(placement, stop=2)
    threads = _of_training()

    def on(what, number):
        if (what, number) == failing:
            raise KeyError("a disk is full")

    watched = placement.tables = Watched(placement.tables, on)
    reported = []
    with pytest.raises(KeyError, match="a disk is full") as raised:
        reported.extend(placement.steps(0, 2, STEPS, 2, lambda: False))
    assert raised.value.__context__ is None
    assert _of_training() <= threads
    pushed = [number for what, number in watched.seen if what == "pushed"]
    assert pushed == list(range(2, failing[1]))
