import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.layers.moe_ffn import MoEFeedForward, assign_slots, expert_capacity

D, F = 6, 10


def layer_and_input(num_experts=4, capacity_factor=None, batch=3, length=5, seed=0):
    keras.utils.set_random_seed(seed)
    layer = MoEFeedForward(num_experts, D, F, capacity_factor)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, length, D)).astype("float32")
    mask = rng.random((batch, length)) < 0.8
    layer(x, mask)
    # The router starts near 0; spread it, so that every expert is used.
    kernel = layer.router.logits.kernel
    kernel.assign(rng.normal(size=kernel.shape).astype("float32"))
    return layer, x, mask


def numpy_eq_6(layer, x, mask):
    """G_e(x)·w_o·relu(w_i·x) token by token, and the experts chosen (-1: padding)."""
    kernel = layer.router.logits.kernel.numpy()
    w_in, w_out = layer.w_in_EDF.numpy(), layer.w_out_EFD.numpy()
    y, chosen = np.zeros_like(x), np.full(mask.shape, -1)
    for b, i in np.argwhere(mask):
        logits = x[b, i] @ kernel
        p = np.exp(logits - logits.max())
        p /= p.sum()
        e = chosen[b, i] = int(np.argmax(logits))
        y[b, i] = p[e] * (np.maximum(x[b, i] @ w_in[e], 0) @ w_out[e])
    return y, chosen


@pytest.mark.parametrize("num_experts", [1, 2, 7])
@pytest.mark.parametrize("capacity_factor", [None, 100.0])
@pytest.mark.parametrize("training", [False, True])
def test_equation_6(num_experts, capacity_factor, training):
    layer, x, mask = layer_and_input(num_experts, capacity_factor)
    y, aux = layer(x, mask, training=training)
    expected, chosen = numpy_eq_6(layer, x, mask)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)
    load = np.bincount(chosen[mask], minlength=num_experts) / mask.sum()
    np.testing.assert_allclose(aux.load_E, load, rtol=1e-6)
    assert aux.dropped_fraction.numpy() == 0


def gradients(layer, x, mask, training=True):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, aux = layer(x, mask, training=training)
        loss = tf.reduce_sum(tf.sin(y)) + aux.load_balance_loss + aux.z_loss
    sources = [x, layer.router.logits.kernel, layer.w_in_EDF, layer.w_out_EFD]
    return [g.numpy() for g in tape.gradient(loss, sources)]


def test_both_paths_have_the_same_gradients():
    dropless = layer_and_input(capacity_factor=None)
    capacity = layer_and_input(capacity_factor=100.0)
    for a, b in zip(gradients(*dropless), gradients(*capacity), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.isfinite(a).all() and a.any()


def test_gradient_matches_finite_differences():
    layer, x, mask = layer_and_input()
    weights = tf.constant(np.random.default_rng(3).normal(size=x.shape), tf.float32)

    def value(x):
        return tf.reduce_sum(layer(x, mask)[0] * weights)

    theory, numeric = tf.test.compute_gradient(value, [tf.constant(x)], delta=1e-3)
    np.testing.assert_allclose(theory[0], numeric[0], atol=2e-2)


def test_padding_gets_zero_output_and_zero_gradient():
    layer, x, mask = layer_and_input()
    for capacity_factor in (None, 100.0):
        layer.capacity_factor = capacity_factor
        assert not layer(x, mask, training=True)[0].numpy()[~mask].any()
        assert not gradients(layer, x, mask)[0][~mask].any()


def test_unused_experts_get_zero_gradient():
    layer, x, mask = layer_and_input(num_experts=16, batch=1, length=3)
    _, chosen = numpy_eq_6(layer, x, mask)
    unused = np.setdiff1d(np.arange(16), chosen)
    g_in, g_out = gradients(layer, x, mask)[2:]
    assert not g_in[unused].any() and not g_out[unused].any()
    assert g_out[np.unique(chosen[chosen >= 0])].any(axis=(1, 2)).all()


def test_output_does_not_depend_on_company_order_or_padding():
    layer, x, mask = layer_and_input(capacity_factor=0.5, batch=6)
    together = layer(x, mask)[0].numpy()
    for b in range(6):
        alone = layer(x[b : b + 1], mask[b : b + 1])[0].numpy()
        np.testing.assert_allclose(alone[0], together[b], rtol=1e-5, atol=1e-6)
    order = np.random.default_rng(1).permutation(6)
    np.testing.assert_allclose(layer(x[order], mask[order])[0], together[order], atol=1e-6)
    padded = np.concatenate([x, np.full((6, 4, D), 1e3, "float32")], axis=1)
    padded_mask = np.concatenate([mask, np.zeros((6, 4), bool)], axis=1)
    np.testing.assert_allclose(layer(padded, padded_mask)[0][:, :5], together, atol=1e-6)


def test_permuting_the_experts_changes_nothing():
    layer, x, mask = layer_and_input()
    before = layer(x, mask)[0].numpy()
    order = np.array([2, 0, 3, 1])
    layer.router.logits.kernel.assign(layer.router.logits.kernel.numpy()[:, order])
    layer.w_in_EDF.assign(layer.w_in_EDF.numpy()[order])
    layer.w_out_EFD.assign(layer.w_out_EFD.numpy()[order])
    np.testing.assert_allclose(layer(x, mask)[0], before, atol=1e-6)


def test_exact_dispatch_table():
    # Experts of six tokens; 2 is padding here. Expert 0 has room for two of its three.
    slot, token = assign_slots(tf.constant([0, 1, 0, 2, 0, 1]), num_experts=2, capacity=2)
    np.testing.assert_array_equal(slot, [0, 2, 1, -1, -1, 3])
    np.testing.assert_array_equal(token, [0, 2, 1, 5])


def test_empty_slots():
    slot, token = assign_slots(tf.constant([1, 1]), num_experts=3, capacity=2)
    np.testing.assert_array_equal(slot, [2, 3])
    np.testing.assert_array_equal(token, [-1, -1, 0, 1, -1, -1])


def test_capacity_is_a_ceiling():
    for tokens, experts, factor, expected in ((8, 4, 1.0, 2), (9, 4, 1.0, 3), (8, 4, 1.25, 3)):
        assert expert_capacity(tf.constant(tokens), experts, factor).numpy() == expected
    assert expert_capacity(tf.constant(0), 4, 1.0).numpy() == 0


def test_capacity_drops_the_overflow_in_training_only():
    layer, x, _ = layer_and_input(num_experts=3, capacity_factor=1.0, batch=4, length=6)
    mask = np.ones((4, 6), bool)
    expected, chosen = numpy_eq_6(layer, x, mask)
    capacity = 24 // 3
    place = np.array([(chosen.ravel()[:t] == e).sum() for t, e in enumerate(chosen.ravel())])
    kept = (place < capacity).reshape(4, 6)
    assert not kept.all(), "the case must overflow"
    y, aux = layer(x, mask, training=True)
    np.testing.assert_allclose(y, expected * kept[..., np.newaxis], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(aux.dropped_fraction, 1 - kept.mean(), rtol=1e-6)
    np.testing.assert_allclose(layer(x, mask)[0], expected, rtol=1e-4, atol=1e-6)

    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, mask, training=True)[0])
    moved = tape.gradient(loss, x).numpy().any(axis=-1)
    np.testing.assert_array_equal(moved, kept)


@pytest.mark.parametrize("capacity_factor", [None, 1.0])
def test_nothing_but_padding_or_nothing_at_all(capacity_factor):
    layer, x, mask = layer_and_input(capacity_factor=capacity_factor)
    y, aux = layer(x, np.zeros_like(mask), training=True)
    assert not y.numpy().any() and not aux.load_E.numpy().any()
    for g in gradients(layer, x, np.zeros_like(mask)):
        assert not g.any()
    assert layer(x[:0], mask[:0], training=True)[0].shape == (0, 5, D)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("capacity_factor", [None, 2.0])
def test_mixed_precision(policy, capacity_factor):
    layer = MoEFeedForward(4, D, F, capacity_factor, dtype=keras.mixed_precision.Policy(policy))
    x = tf.random.normal((2, 5, D))
    y, aux = layer(x, tf.ones((2, 5), tf.bool), training=True)
    assert y.dtype == policy.removeprefix("mixed_") and layer.w_in_EDF.dtype == tf.float32
    assert {t.dtype for t in aux} == {tf.float32}
    assert np.isfinite(tf.cast(y, tf.float32)).all()


def test_graph_with_unknown_dimensions_traces_once():
    layer, x, mask = layer_and_input(capacity_factor=1.0)
    traces = []

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, D], tf.float32),
            tf.TensorSpec([None, None], tf.bool),
        ]
    )
    def call(x, mask):
        traces.append(1)
        return layer(x, mask, training=False)[0], layer(x, mask, training=True)[0]

    for b, i in ((3, 5), (1, 2), (2, 4)):
        eager = layer(x[:b, :i], mask[:b, :i])[0]
        np.testing.assert_allclose(call(x[:b, :i], mask[:b, :i])[0], eager, atol=1e-6)
    assert len(traces) == 1


def test_config_round_trip():
    layer = MoEFeedForward(4, D, F, 1.5)
    assert MoEFeedForward.from_config(layer.get_config()).get_config() == layer.get_config()
