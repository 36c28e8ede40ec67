import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.layers.moe_attention import MoEMultiHeadAttention

D, HEADS = 8, 2


def layer_and_input(num_experts=3, batch=3, length=5, seed=0):
    keras.utils.set_random_seed(seed)
    layer = MoEMultiHeadAttention(HEADS, D, num_experts)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, length, D)).astype("float32")
    mask = rng.random((batch, length)) < 0.7
    layer(x, mask)
    return layer, x, mask


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_eq_5(layer, x, mask, causal):
    """Eq. 5 expert by expert, head by head, query by query."""
    E, d = layer.num_experts, D // HEADS
    gate_kernel = layer.gates.kernel.numpy().reshape(D, 3, E) if E > 1 else None

    def mixture(which):
        w_e = layer.w_qkv[which].numpy().reshape(E, D, D)
        gate = softmax(x @ gate_kernel[:, which]) if E > 1 else np.ones((*x.shape[:2], 1))
        return sum(gate[..., e : e + 1] * (x @ w_e[e]) for e in range(E))

    q, k, v = (mixture(which) for which in range(3))
    y = np.zeros_like(x)
    for b, i in np.ndindex(*mask.shape):
        seen = mask[b] & (np.arange(mask.shape[1]) <= i if causal else True)
        for h in range(HEADS) if seen.any() else ():
            part = slice(h * d, (h + 1) * d)
            weights = softmax(q[b, i, part] @ k[b, seen, part].T / np.sqrt(d))
            y[b, i, part] = weights @ v[b, seen, part]
    return y @ layer.output_projection.kernel.numpy()


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_equation_5(num_experts, causal):
    layer, x, mask = layer_and_input(num_experts)
    expected = numpy_eq_5(layer, x, mask, causal)
    np.testing.assert_allclose(layer(x, mask, causal=causal), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_finite_and_zero_for_padding(causal):
    layer, x, mask = layer_and_input()
    mask[0] = False  # a row that sees nothing
    mask[1] = [False, False, True, True, False]
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, mask, causal=causal, training=True)
        # A padding position's own query is no one's business: look at real positions only.
        loss = tf.reduce_sum(tf.sin(y) * tf.cast(mask[..., np.newaxis], tf.float32))
    assert not y.numpy()[0].any()
    weights = layer.trainable_variables
    assert len(weights) == 5
    gradients = tape.gradient(loss, [x, *weights])
    for g in gradients:
        assert np.isfinite(g).all() and g.numpy().any()
    assert not gradients[0].numpy()[~mask].any()


def test_causal_output_ignores_the_future():
    layer, x, _ = layer_and_input()
    mask = np.ones(x.shape[:2], bool)
    before = layer(x, mask, causal=True).numpy()
    x[:, 3:] += 100
    after = layer(x, mask, causal=True).numpy()
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert np.abs(after[:, 3:] - before[:, 3:]).max() > 1


def test_output_does_not_depend_on_company_order_or_padding():
    layer, x, mask = layer_and_input(batch=4)
    together = layer(x, mask).numpy()
    for b in range(4):
        np.testing.assert_allclose(
            layer(x[b : b + 1], mask[b : b + 1])[0], together[b], rtol=1e-5, atol=1e-6
        )
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(layer(x[order], mask[order]), together[order], atol=1e-6)
    padded = np.concatenate([x, np.full((4, 3, D), 50, "float32")], axis=1)
    padded_mask = np.concatenate([mask, np.zeros((4, 3), bool)], axis=1)
    np.testing.assert_allclose(layer(padded, padded_mask)[:, :5], together, atol=1e-5)


def test_permuting_the_experts_changes_nothing():
    layer, x, mask = layer_and_input()
    before = layer(x, mask).numpy()
    order = [2, 0, 1]
    gates = layer.gates.kernel
    gates.assign(gates.numpy().reshape(D, 3, 3)[:, :, order].reshape(D, 9))
    for w in layer.w_qkv:
        w.assign(w.numpy().reshape(3, D, D)[order].reshape(3 * D, D))
    np.testing.assert_allclose(layer(x, mask), before, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_with_a_row_that_sees_nothing(policy):
    layer = MoEMultiHeadAttention(HEADS, D, 2, dtype=keras.mixed_precision.Policy(policy))
    mask = tf.constant([[True, True], [False, False]])
    y = layer(100 * tf.ones((2, 2, D)), mask)
    assert y.dtype == policy.removeprefix("mixed_")
    assert np.isfinite(tf.cast(y, tf.float32)).all() and not tf.cast(y, tf.float32).numpy()[1].any()


def test_graph_with_unknown_dimensions():
    layer, x, mask = layer_and_input()
    call = tf.function(
        lambda x, mask: layer(x, mask, causal=True),
        input_signature=[
            tf.TensorSpec([None, None, D], tf.float32),
            tf.TensorSpec([None, None], tf.bool),
        ],
    )
    for b, i in ((3, 5), (1, 2), (0, 4)):
        np.testing.assert_allclose(
            call(x[:b, :i], mask[:b, :i]), layer(x[:b, :i], mask[:b, :i], causal=True), atol=1e-6
        )


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="hidden_dim 8 is not a multiple of num_heads 3"):
        MoEMultiHeadAttention(3, 8)
