"""Dynamic tables against a dict: whatever arrives, slots are the keys' own and never too many."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings

from data.channels import Dynamic
from modules.embeddings import key_map, sightings
from modules.embeddings.dynamic import DynamicTable, find_slots
from modules.embeddings.table import MASK, MISSING, NUM_RESERVED, PAD

DIM = 4
SIZES = Dynamic(capacity=16, tail_rows=6, admit_after=2, evict_after=3)
FIRST_OF_TAIL = NUM_RESERVED + SIZES.capacity


def _table(name: str = "t", **changes) -> DynamicTable:
    return DynamicTable(DIM, name, SIZES.model_copy(update=changes))


def _keys(*keys: int) -> tf.Tensor:
    return tf.constant(keys, tf.int64, shape=[len(keys)])


def _step(step: int) -> tf.Tensor:
    return tf.constant(step, tf.int64)


def _is_private(slots: np.ndarray) -> np.ndarray:
    return (slots >= NUM_RESERVED) & (slots < FIRST_OF_TAIL)


def _statistics(table: DynamicTable) -> dict[str, int]:
    return {name: int(value) for name, value in table.statistics()._asdict().items()}


# One table, cleared before each example: tracing its functions is what takes time.
_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("seen"), st.sets(st.integers(3, 60), min_size=1, max_size=24)),
        st.tuples(st.just("evict"), st.integers(0, 4)),
    ),
    max_size=25,
)


@pytest.fixture(scope="module")
def shared_table() -> DynamicTable:
    return _table("model")


def _clear(table: DynamicTable) -> None:
    for variable in (table.keys, table.last_seen, table.cells, table.counters):
        variable.assign(tf.zeros_like(variable))


@given(events=_EVENTS)
@settings(max_examples=60, deadline=None)
def test_any_arrivals_and_evictions_against_a_dict(shared_table, events):
    """The dict holds what the table may not forget: who has a slot, and when it was last seen."""
    table = shared_table
    _clear(table)
    slot_of: dict[int, int] = {}
    last_seen: dict[int, int] = {}
    admitted = evicted = step = 0
    for what, value in events:
        if what == "evict":
            step += value
            gone = {k for k in slot_of if step - last_seen[k] > SIZES.evict_after}
            assert table.evict(_step(step)).numpy() == len(gone)
            evicted += len(gone)
            for key in gone:
                del slot_of[key]
            if gone:
                assert not _is_private(
                    table.resolve(_keys(*gone), _step(step), False).numpy()
                ).any()
        else:
            step += 1
            keys = sorted(value)
            slots = table.resolve(_keys(*keys), _step(step)).numpy()
            for key, slot in zip(keys, slots.tolist(), strict=True):
                if key in slot_of:
                    assert slot == slot_of[key]
                elif _is_private(slot):
                    slot_of[key] = slot
                    admitted += 1
                else:
                    assert FIRST_OF_TAIL <= slot < table.num_rows
            last_seen |= dict.fromkeys(keys, step)
        everyone = np.arange(3, 61)
        now = table.resolve(tf.constant(everyone), _step(step), False).numpy()
        private = _is_private(now)
        assert dict(zip(everyone[private], now[private], strict=True)) == slot_of
        assert len(set(slot_of.values())) == len(slot_of) <= SIZES.capacity
        # Free places are conserved: whatever isn't a key's own is free.
        assert np.count_nonzero(table.keys) == len(slot_of)
        found = _statistics(table)
        assert (found["admitted"], found["evicted"]) == (admitted, evicted)
        assert found["occupied"] == len(slot_of)


@given(
    st.sets(st.integers(3, 10**12), min_size=1, max_size=100),
    st.sets(st.integers(3, 200), max_size=30),
)
@settings(max_examples=40, deadline=None)
def test_free_slots_are_free_and_distinct(present, wanted):
    stored = tf.Variable(tf.zeros([6, key_map.BUCKET], tf.int64))
    for keys in (present, wanted - present):
        slots = key_map.free_slots(stored, _keys(*keys)).numpy()
        placed = slots != key_map.ABSENT
        assert len(set(slots[placed])) == placed.sum()
        assert (tf.reshape(stored, [-1]).numpy()[slots[placed]] == key_map.FREE).all()
        kept = _keys(*np.array(list(keys))[placed])
        key_map.write(stored, tf.constant(slots[placed]), kept)
        np.testing.assert_array_equal(key_map.find(stored, kept), slots[placed])


def test_reserved_keys_have_their_own_slots_and_are_never_evicted():
    table = _table()
    for step in (1, 2, 30):
        slots = table.resolve(_keys(PAD, MASK, MISSING), _step(step))
        np.testing.assert_array_equal(slots, [0, 1, 2])
        assert table.evict(_step(step + 20)).numpy() == 0
    assert _statistics(table)["admitted"] == 0


@pytest.mark.parametrize("admit_after", [1, 2, 4])
def test_admission_at_the_sighting_asked_for(admit_after):
    table = _table(admit_after=admit_after)
    for sighting in range(1, 6):
        slot = table.resolve(_keys(77), _step(sighting)).numpy()
        assert _is_private(slot)[0] == (sighting >= admit_after)
        table.resolve(_keys(77), _step(sighting), training=False)  # reading is no sighting


def test_sightings_are_forgotten_in_time():
    table = _table(admit_after=2)
    table.resolve(_keys(77), _step(1))
    # A window is `capacity` sightings of keys without a row.
    for key in range(100, 115):
        table.resolve(_keys(key), _step(2))
    assert not _is_private(table.resolve(_keys(77), _step(3)).numpy()).any()
    assert _is_private(table.resolve(_keys(77), _step(4)).numpy()).all()


def test_batches_larger_than_the_table_do_not_keep_everyone_out():
    table = _table()
    batch = _keys(*range(100, 400))
    for step in range(1, 5):
        slots = table.resolve(batch, _step(step)).numpy()
    assert _is_private(slots).sum() == SIZES.capacity


def test_a_full_table_admits_nobody_until_eviction():
    table = _table(admit_after=1, evict_after=5)
    first = _keys(*range(1000, 1200))
    slots = table.resolve(first, _step(1)).numpy()
    assert _is_private(slots).sum() == SIZES.capacity  # 200 keys leave no bucket unfilled
    assert _statistics(table)["refused"] == 200 - SIZES.capacity
    assert not _is_private(table.resolve(_keys(5), _step(2)).numpy()).any()
    assert table.evict(_step(6)).numpy() == 0
    assert table.evict(_step(7)).numpy() == SIZES.capacity
    assert _is_private(table.resolve(_keys(5), _step(8)).numpy()).all()
    assert not _is_private(table.resolve(first, _step(8), training=False).numpy()).any()


def test_an_admitted_row_starts_as_its_tail_row_with_a_fresh_optimizer():
    table = _table()
    key = _keys(123)
    tail = table.resolve(key, _step(1))
    table.update(tail, tf.ones([1, DIM]), 0.1)
    learned = table.gather(tail).numpy()
    own = table.resolve(key, _step(2))
    np.testing.assert_array_equal(table.gather(own), learned)
    assert table.state.numpy()[own[0]] == np.float32(0.1) < table.state.numpy()[tail[0]]
    table.update(own, tf.ones([1, DIM]), 0.1)
    np.testing.assert_array_equal(table.gather(tail), learned)
    # The slot's next owner finds nothing of it.
    table.evict(_step(20))
    heirs = range(1000, 1200)
    for step in (20, 21):
        slots = table.resolve(_keys(*heirs), _step(step)).numpy()
    heir = _keys(heirs[list(slots).index(own.numpy()[0])])
    its_tail = find_slots(tf.zeros_like(table.keys), heir, SIZES.tail_rows)
    np.testing.assert_array_equal(table.gather(own), table.gather(its_tail))
    assert table.state.numpy()[own[0]] == np.float32(0.1)


def test_update_is_rowwise_adagrad_with_tail_gradients_summed():
    table = _table(tail_rows=1)
    slots = table.resolve(_keys(7, PAD, 8, 9), _step(1))
    before = table.gather(slots).numpy()
    grads = np.array([[1.0] * DIM, [0.0] * DIM, [2.0] * DIM, [-0.5] * DIM], np.float32)
    table.update(slots, tf.constant(grads), 0.1)
    total = 2.5
    expected = before - 0.1 * total / np.sqrt(0.1 + total**2)
    expected[1] = before[1]
    np.testing.assert_allclose(table.gather(slots), expected, rtol=1e-5)


@given(st.lists(st.sets(st.integers(3, 400), min_size=1, max_size=40), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_a_sketch_never_counts_too_low(batches):
    cells = tf.Variable(tf.zeros([256], tf.uint8))
    times: dict[int, int] = {}
    for batch in batches:
        counts = sightings.sight(cells, _keys(*batch)).numpy()
        for key, count in zip(batch, counts, strict=True):
            times[key] = times.get(key, 0) + 1
            assert count >= times[key]
    distinct = float(sightings.distinct(cells))
    assert abs(distinct - len(times)) <= 3 + 0.4 * len(times)


def test_a_sketch_saturates():
    cells = tf.Variable(tf.fill([16], tf.constant(254, tf.uint8)))
    assert [int(sightings.sight(cells, _keys(5))[0]) for _ in range(3)] == [255, 255, 255]


def test_statistics_estimate_the_tail():
    table = _table("wide", capacity=2048, tail_rows=100)
    table.resolve(tf.range(1000, 1500, dtype=tf.int64), _step(1))
    found = _statistics(table)
    assert abs(found["tail_ids"] - 500) < 25
    # 500 keys on 100 rows take all but one or so.
    assert abs(found["tail_collisions"] - (found["tail_ids"] - 100)) < 3


def test_a_lifecycle_tells_what_happened_since_the_last():
    table = _table("told", capacity=64, evict_after=3)
    assert not any(count for name, count in table.lifecycle().items() if name != "capacity")
    for step in (1, 2):
        table.resolve(tf.range(100, 110, dtype=tf.int64), _step(step))
    first = table.lifecycle()
    assert first["admitted"] == first["growth"] == first["occupied"] == 10
    assert first["evicted"] == first["refused"] == 0 and first["capacity"] == 64
    table.evict(_step(9))
    second = table.lifecycle()
    assert second["admitted"] == 0 and second["evicted"] == 10
    assert second["growth"] == -10 and second["occupied"] == 0


def test_steps_that_restart_leave_keys_their_time():
    table = _table("restarted", capacity=64, admit_after=1, evict_after=3)
    table.resolve(tf.range(100, 105, dtype=tf.int64), _step(98))
    table.resolve(tf.range(200, 210, dtype=tf.int64), _step(100))
    table.restart_steps(100)
    assert table.evict(_step(1)).numpy() == 0
    assert table.evict(_step(2)).numpy() == 5  # 4 steps after it came
    assert table.evict(_step(3)).numpy() == 0
    assert table.evict(_step(4)).numpy() == 10


def test_evictions_in_time_are_every_tenth_of_a_life():
    table = _table("in_time", capacity=64, admit_after=1, evict_after=20)
    table.resolve(tf.range(100, 105, dtype=tf.int64), _step(0))

    @tf.function
    def step(number):
        table.evict_in_time(number)

    occupied = []
    for number in range(20, 24):
        step(_step(number))
        occupied.append(_statistics(table)["occupied"])
    assert occupied == [5, 5, 0, 0]  # the 21st step is no even one


def test_memory_is_what_the_sizes_say():
    table = _table("m", capacity=64, tail_rows=10)
    rows = NUM_RESERVED + 64 + 10
    assert table.num_rows == rows
    # rows, state, flag; key, last step, 4 cells; 7 counters
    assert table.num_bytes == rows * (4 * DIM + 4 + 1) + 64 * (8 + 4 + 4) + 7 * 8


def test_a_lookup_is_what_training_resolves_and_reads_the_map_and_the_rows_only():
    table = _table("read", capacity=64)
    rng = np.random.default_rng(0)
    for step in range(1, 5):
        keys = np.unique(rng.integers(NUM_RESERVED, 80, 20))
        slots = table.resolve(tf.constant(keys), _step(step))
        table.update(slots, tf.constant(rng.normal(size=(len(keys), DIM)), tf.float32), 0.1)
    lookup = tf.function(
        table.lookup, input_signature=[tf.TensorSpec([None, None], tf.int64)], autograph=False
    )
    keys = tf.range(0, 90, dtype=tf.int64)
    rows = lookup(tf.reshape(keys, [9, 10]))
    assert rows.shape == (9, 10, DIM)
    expected = table.gather(table.resolve(keys, _step(9), training=False))
    np.testing.assert_array_equal(tf.reshape(rows, [90, DIM]), expected)
    # What training alone needs isn't exported.
    read = {v.ref() for v in lookup.get_concrete_function().variables}
    assert read == {table.keys.ref(), table.rows.ref()}
