import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.embeddings.table import PAD, EmbeddingTable


def test_lookup_and_padding():
    table = EmbeddingTable(10, 4, "t")
    ids = tf.constant([[3, PAD, 9], [1, 2, PAD]], tf.int64)
    out = table(ids).numpy()
    expected = table.rows.numpy()[ids.numpy()]
    expected[ids.numpy() == PAD] = 0
    np.testing.assert_array_equal(out, expected)
    assert table.rows.numpy()[PAD].any(), "zeros must come from the mask, not from the storage"


def test_padding_row_gets_no_gradient_and_duplicates_add_up():
    table = EmbeddingTable(6, 2, "t")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(table(tf.constant([0, 3, 3, 0, 5])))
    gradient = tape.gradient(loss, table.rows)
    assert isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(tf.convert_to_tensor(gradient).numpy()[:, 0], [0, 0, 0, 2, 0, 1])


def test_initial_rows_are_uniform_in_scale_and_follow_the_seed():
    keras.utils.set_random_seed(7)
    first = EmbeddingTable(5000, 8, "t", init_scale=0.1).rows.numpy()
    keras.utils.set_random_seed(7)
    again = EmbeddingTable(5000, 8, "t", init_scale=0.1).rows.numpy()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first).max() <= 0.1
    np.testing.assert_allclose(first.std(), 0.1 / np.sqrt(3), rtol=0.02)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_float32_rows(policy):
    table = EmbeddingTable(8, 4, "t", dtype=keras.mixed_precision.Policy(policy))
    assert table.rows.dtype == tf.float32
    assert table(tf.constant([3, 0])).dtype == policy.removeprefix("mixed_")


def test_too_few_rows():
    with pytest.raises(ValueError, match="'small'.*3 rows are reserved"):
        EmbeddingTable(2, 4, "small")


def test_config_round_trip():
    table = EmbeddingTable.from_config(EmbeddingTable(10, 4, "t", init_scale=0.2).get_config())
    assert (table.num_rows, table.dim, table.init_scale, table.name) == (10, 4, 0.2, "t")
