import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.embeddings.rowwise_adagrad import RowwiseAdagrad

LR, INIT, EPS = 0.1, 0.5, 1e-10


def numpy_step(w, a, gradient, rows):
    """The rule of the docstring, for the rows that have a gradient."""
    for r in rows:
        a[r] += np.mean(gradient[r] ** 2)
        w[r] -= LR * gradient[r] / np.sqrt(a[r] + EPS)


def optimizer():
    return RowwiseAdagrad(LR, initial_accumulator_value=INIT, epsilon=EPS)


def test_sparse_steps_match_numpy_with_duplicates():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(20, 3)).astype("float32")
    a = np.full(20, INIT, "float32")
    variable, opt = tf.Variable(w), optimizer()
    for _ in range(5):
        ids = rng.integers(0, 10, 12)  # duplicates, and rows 10.. are never touched
        values = rng.normal(size=(12, 3)).astype("float32")
        opt.apply_gradients([(tf.IndexedSlices(values, ids, [20, 3]), variable)])
        dense = np.zeros_like(w)
        np.add.at(dense, ids, values)
        numpy_step(w, a, dense, np.unique(ids))
    np.testing.assert_allclose(variable.numpy(), w, rtol=1e-5, atol=1e-6)


def test_rows_without_gradient_are_untouched():
    start = np.random.default_rng(1).normal(size=(6, 2)).astype("float32")
    variable, opt = tf.Variable(start), optimizer()
    for _ in range(3):
        gradient = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([4]), [6, 2])
        opt.apply_gradients([(gradient, variable)])
    kept = np.arange(6) != 4
    np.testing.assert_array_equal(variable.numpy()[kept], start[kept])
    accumulator = next(v for v in opt.variables if "row_accumulator" in v.name)
    np.testing.assert_allclose(accumulator.numpy(), [INIT] * 4 + [INIT + 3, INIT])


def test_zero_gradient_changes_nothing():
    variable, opt = tf.Variable(tf.ones([4, 2])), optimizer()
    opt.apply_gradients([(tf.IndexedSlices(tf.zeros([1, 2]), tf.constant([0]), [4, 2]), variable)])
    np.testing.assert_array_equal(variable.numpy(), np.ones((4, 2)))


@pytest.mark.parametrize("shape", [(5, 3), (5,), ()])
def test_dense_gradient_of_any_rank(shape):
    rng = np.random.default_rng(2)
    w = rng.normal(size=shape).astype("float32")
    gradient = rng.normal(size=shape).astype("float32")
    variable, opt = tf.Variable(w), optimizer()
    opt.apply_gradients([(tf.constant(gradient), variable)])
    flat = gradient.reshape((-1, 3) if len(shape) == 2 else (-1, 1))
    a = (INIT + np.mean(flat**2, axis=1)).reshape((-1, 1) if len(shape) == 2 else shape)
    np.testing.assert_allclose(variable.numpy(), w - LR * gradient / np.sqrt(a + EPS), rtol=1e-5)


def test_one_float_of_state_a_row_and_checkpoint_round_trip(tmp_path):
    variable, opt = tf.Variable(tf.ones([7, 5])), optimizer()
    gradient = tf.IndexedSlices(tf.ones([1, 5]), tf.constant([2]), [7, 5])
    opt.apply_gradients([(gradient, variable)])
    assert sorted(v.shape.num_elements() for v in opt.variables)[-1] == 7
    path = tf.train.Checkpoint(opt=opt, variable=variable).write(str(tmp_path / "c"))

    other, fresh = tf.Variable(tf.zeros([7, 5])), optimizer()
    fresh.build([other])
    checkpoint = tf.train.Checkpoint(opt=fresh, variable=other)
    checkpoint.read(path).assert_existing_objects_matched()
    for o, v in ((opt, variable), (fresh, other)):
        o.apply_gradients([(gradient, v)])
    np.testing.assert_array_equal(other.numpy(), variable.numpy())


def test_config_and_schedule_round_trip():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    opt = RowwiseAdagrad(schedule, initial_accumulator_value=0.3)
    copy = RowwiseAdagrad.from_config(opt.get_config())
    assert copy.initial_accumulator_value == 0.3
    assert copy.weight_decay is None and not copy.jit_compile


def test_refuses_what_would_touch_every_row():
    for kwargs in ({"weight_decay": 0.01}, {"use_ema": True}):
        with pytest.raises(ValueError, match="touch every row"):
            RowwiseAdagrad(**kwargs)


def test_a_step_makes_nothing_as_large_as_the_table():
    """So its cost doesn't grow with the rows (DESIGN §6)."""
    variable, opt = tf.Variable(tf.ones([1000, 4])), optimizer()
    opt.build([variable])

    def largest(gradient_of) -> int:
        @tf.function
        def step(ids: tf.Tensor) -> None:
            gradient = tf.IndexedSlices(tf.ones([2, 4]), ids, [1000, 4])
            opt.apply_gradients([(gradient_of(gradient), variable)])

        graph = step.get_concrete_function(tf.constant([3, 999], tf.int64)).graph
        made = [out.shape for op in graph.get_operations() for out in op.outputs]
        return max(shape.num_elements() or 0 for shape in made)

    assert largest(lambda sparse: sparse) < 1000
    assert largest(tf.convert_to_tensor) >= 1000  # this is how it would show
