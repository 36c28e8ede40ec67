"""The operations of a shard against NumPy, in a tf.function and in a TF1 graph."""

import numpy as np
import pytest
import tensorflow as tf

from modules.embeddings import adagrad, rounding, shard
from modules.embeddings.initialization import initial_rows

ROWS, DIM, LEARNING_RATE = 40, 3, 0.1


def variables(kind="rowwise_adagrad", rows=ROWS, dtype=tf.float32):
    return (
        tf.Variable(tf.zeros([rows, DIM], dtype)),
        tf.Variable(tf.fill(adagrad.state_shape(kind, rows, DIM), 0.1)),
        tf.Variable(tf.zeros([rows], tf.uint8)),
    )


def in_function(emit):
    """A tf.function of what is emitted; it returns nothing, as operations can't be returned."""

    def emitted(*args):
        emit(*args)

    return tf.function(emitted)


def numpy_update(rows, state, ids, grads, kind):
    for i, g in zip(ids, grads, strict=True):
        state[i] += np.mean(g**2) if kind == "rowwise_adagrad" else g**2
        rows[i] -= LEARNING_RATE * g / np.sqrt(state[i] + 1e-10)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_fill_is_the_initial_rows_whatever_the_shards(num_shards, monkeypatch):
    monkeypatch.setattr(shard, "FILL_CHUNK", 7)  # several chunks, the last one short
    table = np.zeros((ROWS, DIM), "float32")
    for number in range(num_shards):
        rows, _, _ = variables(rows=shard.shard_rows(ROWS, number, num_shards))
        in_function(lambda v=rows, n=number: shard.fill(v, 5, 0.05, n, num_shards))()
        table[number::num_shards] = rows.numpy()
    np.testing.assert_array_equal(table, initial_rows(tf.range(ROWS, dtype=tf.int64), 3, 0.05, 5))


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad"])
def test_updates_match_numpy(kind):
    rng = np.random.default_rng(0)
    parts = variables(kind)
    rows, state = rng.normal(size=(ROWS, DIM)).astype("float32"), parts[1].numpy()
    parts[0].assign(rows)
    step = in_function(lambda i, g: shard.update(*parts, i, g, LEARNING_RATE, kind))
    for _ in range(4):
        ids = rng.permutation(ROWS)[:9]
        grads = rng.normal(size=(9, DIM)).astype("float32")
        step(tf.constant(ids), tf.constant(grads))
        numpy_update(rows, state, ids, grads, kind)
    np.testing.assert_allclose(parts[0], rows, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts[1], state, rtol=1e-5)
    np.testing.assert_array_equal(shard.gather(parts[0], tf.constant(ids)), parts[0].numpy()[ids])


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad"])
def test_works_in_a_tf1_graph(kind):
    rng = np.random.default_rng(1)
    ids, grads = np.array([4, 0, 9]), rng.normal(size=(3, DIM)).astype("float32")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        shape = adagrad.state_shape(kind, ROWS, DIM)
        rows = tf.compat.v1.get_variable("rows", [ROWS, DIM], use_resource=True)
        state = tf.compat.v1.get_variable("state", shape, use_resource=True)
        touched = tf.compat.v1.get_variable("touched", [ROWS], tf.uint8, use_resource=True)
        count = tf.compat.v1.placeholder(tf.int32, [])
        allocated = [shard.allocate(rows, count), shard.reset(state, touched, count)]
        session.run(allocated, {count: ROWS})
        session.run(shard.fill(rows, 5, 0.05, 0, 1))
        expected = session.run([rows, state])
        update = shard.update(rows, state, touched, ids, tf.constant(grads), LEARNING_RATE, kind)
        session.run(update)
        numpy_update(*expected, ids, grads, kind)
        got = session.run([rows, state, touched, shard.gather(rows, tf.constant(ids))])
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5)
    assert np.flatnonzero(got[2]).tolist() == [0, 4, 9]
    np.testing.assert_array_equal(got[3], got[0][ids])


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_stochastic_rounding_is_unbiased_and_keeps_what_is_exact(dtype):
    exact = tf.cast(tf.cast(tf.random.normal([10_000]) * 0.1, dtype), tf.float32)
    np.testing.assert_array_equal(rounding.stochastic(exact, dtype), tf.cast(exact, dtype))
    for value in (0.0301, -1.234, 3e-6, 0.0):  # 3e-6 is subnormal in float16
        many = tf.cast(rounding.stochastic(tf.fill([200_000], value), dtype), tf.float64).numpy()
        spacing = many.max() - many.min()
        assert len(np.unique(many)) <= 2
        assert abs(many.mean() - value) <= 5 * spacing / np.sqrt(200_000)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_a_table_of_16_bits_learns_from_steps_below_its_precision(dtype):
    rows, state, touched = variables(dtype=dtype)
    rows.assign(tf.ones_like(rows))
    state.assign(tf.fill([ROWS], 1e6))  # one step is 1e-4, below a float16's spacing
    ids, grads = tf.range(1, ROWS), tf.ones([ROWS - 1, DIM])
    step = in_function(lambda: shard.update(rows, state, touched, ids, grads, LEARNING_RATE))
    for _ in range(300):
        step()
    moved = tf.cast(rows, tf.float32).numpy()
    np.testing.assert_array_equal(moved[0], 1)
    np.testing.assert_allclose(moved[1:].mean(), 1 - 300 * 1e-4, atol=2e-3)


def flags(touched):
    return {i: int(f) for i, f in enumerate(touched.numpy()) if f}


def test_a_save_under_way_loses_no_row(tmp_path):
    parts = variables()
    touched = parts[2]

    def touch(*ids):
        shard.update(*parts, tf.constant(ids), tf.ones([len(ids), DIM]), LEARNING_RATE)

    def save(low=0, high=ROWS, name="a"):
        return int(
            shard.save_chunk(*parts, np.int64(low), np.int64(high), str(tmp_path / name), 0, 1)
        )

    touch(3, 5, 7)
    shard.begin_save(touched)
    touch(5, 9)
    assert save() == 4  # 5 was touched before as well; 9 comes along
    shard.end_save(touched, True)
    assert flags(touched) == {5: shard.TOUCHED, 9: shard.TOUCHED}

    shard.begin_save(touched)
    touch(9)
    shard.end_save(touched, False)
    assert flags(touched) == {5: shard.TOUCHED, 9: shard.TOUCHED}

    shard.begin_save(touched)  # whoever began this never ended it
    touch(1)
    shard.begin_save(touched)
    assert save(0, 9, "b") == 2 and save(9, ROWS, "c") == 1
    assert save(10, ROWS, "none") == 0 and not (tmp_path / "none.index").exists()
    shard.end_save(touched, True)
    assert flags(touched) == {}


@pytest.mark.parametrize("kind", ["rowwise_adagrad", "adagrad"])
@pytest.mark.parametrize("before, after", [(1, 1), (2, 3), (3, 1)])
def test_chunks_restore_into_another_number_of_shards(before, after, kind, tmp_path):
    rng = np.random.default_rng(2)
    ids, grads = rng.permutation(ROWS)[:15], rng.normal(size=(15, DIM)).astype("float32")
    rows, state, _ = (v.numpy() for v in variables(kind))
    numpy_update(rows, state, ids, grads, kind)

    def shards(num):
        return [variables(kind, shard.shard_rows(ROWS, n, num)) for n in range(num)]

    for number, parts in enumerate(shards(before)):
        own = ids % before == number
        shard.update(*parts, ids[own] // before, tf.constant(grads[own]), LEARNING_RATE, kind)
        shard.begin_save(parts[2])
        shard.save_chunk(*parts, 0, parts[0].shape[0], str(tmp_path / str(number)), number, before)
    for number, (got_rows, got_state, _) in enumerate(shards(after)):
        restore = in_function(
            lambda path, r=got_rows, s=got_state, n=number: shard.restore_chunk(
                r, s, path, n, after
            )
        )
        for written in range(before):
            restore(tf.constant(str(tmp_path / str(written))))
        np.testing.assert_allclose(got_rows, rows[number::after], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got_state, state[number::after], rtol=1e-5)


def test_a_chunk_of_another_optimizer_is_refused(tmp_path):
    rows, state, touched = variables()
    shard.update(rows, state, touched, tf.constant([1]), tf.ones([1, DIM]), LEARNING_RATE)
    shard.save_chunk(rows, state, touched, 0, ROWS, str(tmp_path / "a"), 0, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
        shard.restore_chunk(rows, variables("adagrad")[1], str(tmp_path / "a"), 0, 1)
