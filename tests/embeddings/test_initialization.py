import numpy as np
import tensorflow as tf

from modules.embeddings.initialization import initial_rows, table_seed


def test_is_a_function_of_seed_and_row_alone():
    ids = np.array([7, 2**33 + 7, 0, 7], np.int64)
    rows = initial_rows(tf.constant(ids), 5, 0.05, 3).numpy()
    np.testing.assert_array_equal(rows[0], rows[3])
    assert not np.any(rows[0] == rows[1])  # the upper half of a row's number counts
    np.testing.assert_array_equal(initial_rows(tf.constant(ids), 3, 0.05, 3), rows[:, :3])
    np.testing.assert_array_equal(initial_rows(tf.constant(ids[:1]), 5, 0.05, 3), rows[:1])
    other = initial_rows(tf.constant(ids), 5, 0.05, 4).numpy()
    assert not np.any(rows == other)


def test_is_uniform_and_uncorrelated():
    rows = initial_rows(tf.range(100_000, dtype=tf.int64), 32, 0.05, 1).numpy()
    assert rows.dtype == np.float32 and np.abs(rows).max() <= 0.05
    np.testing.assert_allclose(rows.mean(0), 0, atol=0.05 / np.sqrt(3e5) * 5)
    np.testing.assert_allclose(rows.std(0), 0.05 / np.sqrt(3), rtol=0.01)
    deciles, _ = np.histogram(rows, 10, (-0.05, 0.05))
    np.testing.assert_allclose(deciles / rows.size, 0.1, atol=1e-3)
    between_columns = np.corrcoef(rows.T) - np.eye(32)
    assert np.abs(between_columns).max() < 0.02
    between_neighbours = np.corrcoef(rows[:-1, 0], rows[1:, 0])[0, 1]
    assert abs(between_neighbours) < 0.02
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_seeds_of_tables_differ_and_are_stable():
    assert table_seed("item", 1) == table_seed("item", 1) == 3143601512
    assert len({table_seed(name, seed) for name in "abc" for seed in range(9)}) == 27


def test_values_stay_what_they_are():
    """A checkpoint holds touched rows alone: the others must come out equal in every version."""
    rows = initial_rows(tf.constant([0, 1, 10**9], tf.int64), 2, 1.0, 42).numpy()
    expected = [
        [-0.676332831, -0.396529973],
        [-0.379642129, -0.282999635],
        [0.310566604, -0.394590944],
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
