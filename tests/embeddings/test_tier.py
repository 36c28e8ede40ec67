"""The sparse tier on real servers, which are stopped and killed."""

import concurrent.futures
import pathlib
import resource
import signal
import threading
import time

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from modules.embeddings.initialization import initial_rows, table_seed
from modules.embeddings.tier import client
from modules.embeddings.tier.client import SparseTier
from modules.embeddings.tier.connection import Patience, clear
from modules.embeddings.tier.layout import TierError, TierTable
from tests.embeddings.parameter_servers import ParameterServers

TABLES = {"item": TierTable(1000, 4), "word": TierTable(50, 3, init_scale=0.5)}
LEARNING_RATE, SEED = 0.1, 7


@pytest.fixture(scope="module")
def running():
    with ParameterServers(3) as servers:
        yield servers


@pytest.fixture
def servers(running):
    """All three, empty."""
    for address in running.addresses:
        _wait_for(address)
        clear(address)
    return running


def _wait_for(address):
    deadline = time.monotonic() + 60
    while True:
        try:
            with tf.compat.v1.Session(f"grpc://{address}", graph=tf.Graph()) as session:
                return session.list_devices()
        except tf.errors.UnavailableError:
            assert time.monotonic() < deadline, f"{address} doesn't come up"
            time.sleep(0.1)


@pytest.fixture
def tier_of(servers):
    """Makes tiers and closes them."""
    made = []

    def make(shards, tables=TABLES, trainer="t", recover=lambda shard: None, **settings):
        settings = {"optimizer": "rowwise_adagrad", "learning_rate": LEARNING_RATE} | settings
        settings.setdefault("patience", Patience(call=20.0, total=60.0))
        addresses = servers.addresses[:shards]
        tier = SparseTier(
            addresses, tables, seed=SEED, trainer=trainer, recover=recover, **settings
        )
        made.append(tier)
        return tier

    yield make
    for tier in made:
        tier.close()


class Reference:
    """The tables in NumPy."""

    def __init__(self, kind="rowwise_adagrad"):
        self.kind = kind
        self.rows, self.state = {}, {}
        for name, table in TABLES.items():
            numbers = tf.range(table.num_rows, dtype=tf.int64)
            seed = table_seed(name, SEED)
            self.rows[name] = initial_rows(numbers, table.dim, table.init_scale, seed).numpy()
            shape = self.rows[name].shape if kind == "adagrad" else [table.num_rows, 1]
            self.state[name] = np.full(shape, 0.1, "float32")

    def push(self, ids, gradients):
        for name, i in ids.items():
            g = gradients[name].astype("float32")
            square = g**2 if self.kind == "adagrad" else np.mean(g**2, 1, keepdims=True)
            self.state[name][i] += square
            self.rows[name][i] -= LEARNING_RATE * g / np.sqrt(self.state[name][i] + 1e-10)


EVERYTHING = {name: np.arange(table.num_rows) for name, table in TABLES.items()}


def everything_of(tier):
    return tier.pull(EVERYTHING)


def assert_equal(rows, expected, numbers=slice(None)):
    for name in TABLES:
        np.testing.assert_allclose(rows[name][numbers], expected[name][numbers], 1e-5, 1e-6)


def random_step(rng, size=30):
    ids = {n: np.r_[0, 1 + rng.permutation(t.num_rows - 1)[:size]] for n, t in TABLES.items()}
    gradients = {
        name: rng.normal(size=[size + 1, t.dim]).astype("float32") for name, t in TABLES.items()
    }
    for name in TABLES:
        gradients[name][0] = 0  # PAD
    return ids, gradients


def chunks_of(saved, folder):
    return {name: [f"{folder}/{p}" for p in table["chunks"]] for name, table in saved.items()}


@pytest.mark.parametrize(
    "shards, kind", [(1, "adagrad"), (2, "rowwise_adagrad"), (3, "rowwise_adagrad"), (3, "adagrad")]
)
def test_pull_and_push_match_numpy(tier_of, shards, kind):
    rng, reference, tier = (
        np.random.default_rng(0),
        Reference(kind),
        tier_of(shards, optimizer=kind),
    )
    for name, rows in everything_of(tier).items():
        np.testing.assert_array_equal(rows, reference.rows[name])
    for step in range(4):
        ids, gradients = random_step(rng)
        if step == 3:
            del ids["word"]  # this batch has none
        tier.push(ids, gradients, sequence=step)
        reference.push(ids, gradients)
        for name, rows in tier.pull(ids).items():
            np.testing.assert_allclose(rows, reference.rows[name][ids[name]], 1e-5, 1e-6)
    assert_equal(everything_of(tier), reference.rows)


@pytest.mark.parametrize("wire", ["bfloat16", "float16"])
def test_rows_and_gradients_are_rounded_on_the_wire_only(tier_of, wire):
    dtype = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[wire]
    reference, exact, tier = Reference(), tier_of(2), tier_of(2, trainer="u", wire_dtype=wire)
    ids, gradients = random_step(np.random.default_rng(1))
    tier.push(ids, gradients, sequence=0)
    reference.push(ids, {name: g.astype(dtype) for name, g in gradients.items()})
    stored = everything_of(exact)
    assert_equal(stored, reference.rows)
    for name, rows in everything_of(tier).items():
        np.testing.assert_array_equal(rows, stored[name].astype(dtype).astype("float32"))
    pulled = [sum(s.bytes_pulled for s in t.statistics()) for t in (exact, tier)]
    elements = sum(t.num_rows * t.dim for t in TABLES.values())
    assert pulled[0] - pulled[1] == 2 * elements


def test_sixteen_bits_at_rest_lose_no_small_steps(tier_of):
    tier = tier_of(2, rest_dtype="bfloat16")
    ids = {"item": np.arange(1, 1000)}
    before = tier.pull(ids)["item"]
    big = {"item": np.full([999, 4], 300.0, "float32")}
    tier.push(ids, big, sequence=0)
    start = tier.pull(ids)["item"]
    for step in range(1, 51):  # each is 0.1 · 0.3 / 300, a tenth of these rows' spacing or less
        tier.push(ids, {"item": np.full([999, 4], 0.3, "float32")}, sequence=step)
    np.testing.assert_allclose(np.mean(before - start), 0.1, rtol=0.01)
    np.testing.assert_allclose(np.mean(start - tier.pull(ids)["item"]), 50 * 1e-4, rtol=0.05)


def test_a_push_is_applied_once_for_each_trainer(tier_of):
    ids, gradients = random_step(np.random.default_rng(2))
    reference = Reference()
    for trainer in ("t", "t", "u"):  # the second one repeats what the first one sent
        tier_of(2, trainer=trainer).push(ids, gradients, sequence=5)
    for _ in range(2):
        reference.push(ids, gradients)
    tier = tier_of(2)
    assert_equal(everything_of(tier), reference.rows)
    tier.push(ids, gradients, sequence=6)
    reference.push(ids, gradients)
    assert_equal(everything_of(tier), reference.rows)
    with pytest.raises(ValueError, match="push 6 after 6"):
        tier.push(ids, gradients, sequence=6)


def test_two_trainers_push_the_same_rows_at_once(tier_of):
    tiers = [tier_of(2, trainer=name) for name in ("t", "u")]
    ids, gradients = random_step(np.random.default_rng(3))
    reference = Reference()

    def train(tier):
        for step in range(40):
            tier.push(ids, gradients, sequence=step)
            tier.pull(ids)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(train, tiers))
    for _ in range(80):  # equal gradients: their order doesn't matter
        reference.push(ids, gradients)
    for tier in tiers:
        rows = everything_of(tier)
        for name in TABLES:
            np.testing.assert_allclose(rows[name], reference.rows[name], 1e-4, 1e-5)


def test_trainers_that_start_together_make_the_tables_once(tier_of):
    with concurrent.futures.ThreadPoolExecutor() as threads:
        tiers = list(threads.map(lambda name: tier_of(3, trainer=name), "abc"))
    assert sum(s.restores for tier in tiers for s in tier.statistics()) >= 3
    ids, gradients = random_step(np.random.default_rng(4))
    for tier in tiers:
        tier.push(ids, gradients, sequence=0)
    reference = Reference()
    for _ in tiers:
        reference.push(ids, gradients)
    assert_equal(everything_of(tiers[0]), reference.rows)


def test_a_stopped_server_is_waited_for_and_nothing_is_lost_or_doubled(tier_of, servers):
    events = []
    tier = tier_of(
        2,
        on_event=lambda event, **fields: events.append((event, fields)),
        patience=Patience(call=1.0, total=60.0),
    )
    rng, reference = np.random.default_rng(5), Reference()
    servers.send(1, signal.SIGSTOP)
    threading.Timer(5, servers.send, (1, signal.SIGCONT)).start()
    for step in range(3):
        ids, gradients = random_step(rng)
        tier.push(ids, gradients, sequence=step)
        reference.push(ids, gradients)
    assert_equal(everything_of(tier), reference.rows)
    assert [e for e, _ in events[:2]] == ["shard_lost", "shard_back"]
    assert events[0][1]["address"] == servers.addresses[1]
    assert not events[1][1]["restored"]
    first, second = tier.statistics()
    assert first.reconnects == 0 and second.reconnects >= 1 and second.waited_seconds > 1


def test_a_killed_server_alone_is_restored(tier_of, servers, tmp_path):
    folders = []
    events = []
    tier = tier_of(
        2,
        recover=lambda shard: folders[-1] if folders else None,
        on_event=lambda event, **fields: events.append((event, fields)),
    )
    rng, reference = np.random.default_rng(6), Reference()

    def step(number):
        ids, gradients = random_step(rng)
        tier.push(ids, gradients, sequence=number)
        reference.push(ids, gradients)

    step(0)
    folders.append(chunks_of(tier.save(str(tmp_path)), tmp_path))
    tier.end_save(True)
    at_save = {name: rows.copy() for name, rows in reference.rows.items()}
    step(1)
    servers.kill(1)
    threading.Timer(1, servers.start, (1,)).start()
    rows = everything_of(tier)
    assert_equal(rows, reference.rows, slice(0, None, 2))
    assert_equal(rows, at_save, slice(1, None, 2))
    assert [e for e, _ in events] == ["shard_lost", "shard_back"] and events[1][1]["restored"]
    assert [s.restores for s in tier.statistics()] == [1, 2]
    step(2)  # and training goes on


@pytest.mark.parametrize("before, after", [(2, 2), (2, 3), (3, 1)])
def test_changes_since_the_last_save_restore_into_any_number_of_shards(
    servers, tier_of, before, after, tmp_path, monkeypatch
):
    monkeypatch.setattr(client, "SAVE_CHUNK", 100)
    rng, reference = np.random.default_rng(7), Reference("adagrad")
    tier = tier_of(before, optimizer="adagrad")
    chain = {name: [] for name in TABLES}
    for number in range(3):
        ids, gradients = random_step(rng)
        tier.push(ids, gradients, sequence=number)
        reference.push(ids, gradients)
        saved = tier.save(f"{tmp_path}/{number}")
        tier.end_save(True)
        for name, prefixes in chunks_of(saved, f"{tmp_path}/{number}").items():
            chain[name] += prefixes
    assert saved["item"] | {"chunks": 0} == {
        "num_rows": 1000,
        "dim": 4,
        "shards": before,
        "chunks": 0,
    }
    written = sum(
        tf.train.load_checkpoint(f"{tmp_path}/2/{prefix}").get_tensor("ids").size
        for prefix in saved["item"]["chunks"]
    )
    assert written == 31  # the last step's rows only, of a thousand

    tier.push(*random_step(rng), sequence=3)  # undone by restoring
    tier.restore(chain)
    assert_equal(everything_of(tier), reference.rows)
    for address in servers.addresses:
        clear(address)
    other = tier_of(after, optimizer="adagrad", recover=lambda shard: chain)
    assert_equal(everything_of(other), reference.rows)
    ids, gradients = random_step(rng)
    other.push(ids, gradients, sequence=0)  # Adagrad's state came back as well
    reference.push(ids, gradients)
    assert_equal(everything_of(other), reference.rows)


def test_a_server_that_can_not_write_loses_nothing(tier_of, servers, tmp_path):
    tier, reference = tier_of(2), Reference()
    ids, gradients = random_step(np.random.default_rng(8), size=49)
    tier.push(ids, gradients, sequence=0)
    reference.push(ids, gradients)
    # A file may have no bytes: writing fails as on a full disk, in the server.
    limits = resource.prlimit(servers.pid(1), resource.RLIMIT_FSIZE)
    resource.prlimit(servers.pid(1), resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(TierError, match=f"at {servers.addresses[1]}"):
            tier.save(f"{tmp_path}/failed")
    finally:
        resource.prlimit(servers.pid(1), resource.RLIMIT_FSIZE, limits)
    tier.end_save(False)
    chain = chunks_of(tier.save(f"{tmp_path}/whole"), f"{tmp_path}/whole")
    tier.end_save(True)
    tier.restore(chain)
    assert_equal(everything_of(tier), reference.rows)


def test_a_save_during_which_a_server_dies_is_whole(tier_of, servers, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "SAVE_CHUNK", 1)
    tier, reference = tier_of(2), Reference()
    ids, gradients = random_step(np.random.default_rng(9), size=49)
    tier.push(ids, gradients, sequence=0)
    reference.push(ids, gradients)
    initial = Reference().rows

    def kill_once_it_writes():
        while not list(pathlib.Path(tmp_path).glob("tables/item/1-of-2/*.index")):
            time.sleep(0.01)
        servers.kill(1)
        servers.start(1)

    killer = threading.Thread(target=kill_once_it_writes)
    killer.start()
    chain = chunks_of(tier.save(str(tmp_path)), tmp_path)
    killer.join()
    tier.end_save(True)
    for _ in range(2):  # what lives in the servers, and what is saved
        rows = everything_of(tier)
        assert_equal(rows, reference.rows, slice(0, None, 2))
        assert_equal(rows, initial, slice(1, None, 2))
        tier.restore(chain)


def test_other_tables_than_the_servers_hold_are_refused(tier_of, servers):
    tier_of(2)
    wider = {**TABLES, "item": TierTable(1000, 8)}
    with pytest.raises(TierError, match=r"tables\.item\.dim is 4 there and 8 here") as refusal:
        tier_of(2, tables=wider)
    assert any(address in str(refusal.value) for address in servers.addresses[:2])
    with pytest.raises(TierError, match="num_rows is 1000 there and 2000 here"):
        tier_of(2, tables={**TABLES, "item": TierTable(2000, 4)})
    with pytest.raises(TierError, match="num_shards is 2 there and 1 here"):
        tier_of(1)


def test_a_server_that_does_not_come_back_is_named(tier_of, servers):
    tier = tier_of(3, patience=Patience(call=1.0, total=2.0))
    servers.kill(2)
    try:
        with pytest.raises(TierError, match=f"{servers.addresses[2]} didn't answer for 2 s"):
            everything_of(tier)
    finally:
        servers.start(2)


def test_a_folder_that_can_not_be_is_refused_at_once(tier_of, tmp_path):
    tier = tier_of(1)
    tier.push(*random_step(np.random.default_rng(10)), sequence=0)
    with pytest.raises(TierError, match="Not a directory"):
        tier._shards[0].save_chunk("item", 0, 1000, "/dev/null/x/0")


def test_a_missing_chunk_is_named(tier_of, tmp_path):
    gone = f"{tmp_path}/tables/item/0-of-2/0"
    with pytest.raises(TierError, match=gone):
        tier_of(2, recover=lambda shard: {"item": [gone]})
