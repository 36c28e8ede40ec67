"""The block (eq. 7), a dense one, pooling and towers (eq. 8)."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.layers.block import MoETransformerBlock
from modules.layers.pooling import max_pool, running_max
from modules.layers.tower import Tower
from modules.layers.transformer_block import TransformerBlock

D = 8


def block_and_input(batch=4, length=6, **kwargs):
    keras.utils.set_random_seed(0)
    block = MoETransformerBlock(D, 2, 16, num_experts=4, num_attention_experts=2, **kwargs)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, length, D)).astype("float32")
    mask = rng.random((batch, length)) < 0.7
    block(x, mask)
    return block, x, mask


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_equation_7_is_attention_then_two_feed_forward_layers():
    block, x, mask = block_and_input()
    y, auxes = block(x, mask, causal=True)
    expected = x + block.attention(layer_norm(x), mask, causal=True).numpy()
    for ffn in block.ffns:
        expected = expected + ffn(layer_norm(expected), mask)[0].numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert len(auxes) == 2 and auxes[0].load_E.shape == (4,)


def test_a_dense_block_is_attention_then_one_feed_forward_layer():
    _, x, mask = block_and_input()
    block = TransformerBlock(D, num_heads=2, ffn_dim=12)
    block(x, mask)
    for dense in (block.widen, block.narrow):
        dense.bias.assign(tf.random.stateless_normal(dense.bias.shape, [0, 0]))
    y = block(x, mask, causal=True)
    x = x + block.attention(layer_norm(x), mask, causal=True).numpy()
    inner = layer_norm(x) @ block.widen.kernel.numpy() + block.widen.bias.numpy()
    gelu = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / np.sqrt(2)))
    expected = x + gelu @ block.narrow.kernel.numpy() + block.narrow.bias.numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_block_does_not_depend_on_company_order_or_padding(causal):
    block, x, mask = block_and_input(dropout=0.5, capacity_factor=0.5)
    together = block(x, mask, causal=causal)[0].numpy()
    alone = np.concatenate(
        [block(x[b : b + 1], mask[b : b + 1], causal=causal)[0] for b in range(4)]
    )
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    x_other = np.where(mask[..., None], x, 1e3).astype("float32")
    x_other = np.pad(x_other, [(0, 0), (0, 5), (0, 0)], constant_values=7)
    padded = block(x_other, np.pad(mask, [(0, 0), (0, 5)]), causal=causal)[0].numpy()[:, :6]
    np.testing.assert_allclose(padded[mask], together[mask], rtol=1e-4, atol=1e-5)


def test_every_weight_of_the_block_learns():
    block, x, mask = block_and_input(dropout=0.1)
    with tf.GradientTape() as tape:
        y, auxes = block(x, mask, training=True)
        loss = tf.reduce_sum(tf.sin(y)) + sum(a.load_balance_loss + a.z_loss for a in auxes)
    for variable, g in zip(
        block.trainable_variables, tape.gradient(loss, block.trainable_variables), strict=True
    ):
        assert np.isfinite(g).all() and g.numpy().any(), variable.name


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_block_in_mixed_precision(policy):
    block, x, mask = block_and_input(dtype=keras.mixed_precision.Policy(policy))
    mask[0] = False
    y, _ = block(x, mask, causal=True, training=True)
    assert y.dtype == policy.removeprefix("mixed_")
    assert np.isfinite(tf.cast(y, tf.float32)).all()


def test_config_round_trip():
    block, _, _ = block_and_input(dropout=0.1)
    copy = MoETransformerBlock.from_config(block.get_config())
    assert copy.get_config() == block.get_config()


def masked_values(batch=5, length=13, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    h = rng.integers(-3, 3, (batch, length, 4)) if ties else rng.normal(size=(batch, length, 4))
    mask = rng.random((batch, length)) < 0.5
    mask[0] = False
    return tf.constant(h - 1, tf.float32), mask


def numpy_max(h, mask):
    return np.stack(
        [row[m].max(0) if m.any() else np.zeros(4) for row, m in zip(h.numpy(), mask, strict=True)]
    )


def test_max_pool():
    h, mask = masked_values()
    np.testing.assert_array_equal(max_pool(h, mask), numpy_max(h, mask))


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("ties", [False, True])
def test_running_max_is_max_pool_of_every_prefix(length, ties):
    h, mask = masked_values(length=length, ties=ties)
    out = running_max(h, mask).numpy()
    for i in range(length):
        np.testing.assert_array_equal(out[:, i], max_pool(h[:, : i + 1], mask[:, : i + 1]))


def test_running_max_gradient_is_that_of_every_prefix():
    h, mask = masked_values()
    upstream = tf.random.stateless_normal(h.shape, [1, 2])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(h)
        fast = tf.reduce_sum(running_max(h, mask) * upstream)
        prefixes = [max_pool(h[:, : i + 1], mask[:, : i + 1]) for i in range(h.shape[1])]
        slow = tf.reduce_sum(tf.stack(prefixes, axis=1) * upstream)
    gradient = tape.gradient(fast, h).numpy()
    np.testing.assert_allclose(gradient, tape.gradient(slow, h), rtol=1e-5, atol=1e-6)
    assert not gradient[~mask].any()


def test_running_max_gives_a_tie_to_the_first_event():
    h = tf.constant([[[5.0], [2.0], [5.0], [7.0]]])
    with tf.GradientTape() as tape:
        tape.watch(h)
        loss = tf.reduce_sum(running_max(h, tf.ones([1, 4], tf.bool)))
    np.testing.assert_array_equal(tape.gradient(loss, h)[0, :, 0], [3, 0, 0, 1])


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16, tf.bfloat16])
def test_running_max_in_a_graph_of_unknown_shape(dtype):
    h, mask = masked_values()

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 4], dtype),
            tf.TensorSpec([None, None], tf.bool),
        ]
    )
    def value_and_gradient(h, mask):
        with tf.GradientTape() as tape:
            tape.watch(h)
            out = running_max(h, mask)
        return out, tape.gradient(out, h)

    for length in (0, 1, 13):
        h_cut, mask_cut = tf.cast(h[:, :length], dtype), mask[:, :length]
        out, gradient = value_and_gradient(h_cut, mask_cut)
        np.testing.assert_array_equal(out, running_max(h_cut, mask_cut))
        total = tf.cast(tf.reduce_sum(tf.cast(gradient, tf.float32)), tf.int32)
        assert total == 4 * (np.cumsum(mask_cut, axis=1) > 0).sum()


def test_equation_8_linear_and_deep_towers():
    h = np.random.default_rng(0).normal(size=(3, 5, D)).astype("float32")
    linear = Tower((), 2)
    out = linear(h)
    kernel, bias = (w.numpy() for w in linear.logits.weights)
    np.testing.assert_allclose(out, h @ kernel + bias, rtol=1e-5, atol=1e-6)

    deep = Tower((7,), 1, dropout=0.5)
    out = deep(h)
    w1, b1, w2, b2 = (w.numpy() for w in deep.weights)
    np.testing.assert_allclose(out, np.maximum(h @ w1 + b1, 0) @ w2 + b2, rtol=1e-5, atol=1e-6)
    assert np.abs(deep(h, training=True) - out).max() > 0.01


def test_tower_logits_are_float32_in_mixed_precision():
    tower = Tower((4,), 1, dtype=keras.mixed_precision.Policy("mixed_bfloat16"))
    out = tower(tf.ones([2, D], tf.bfloat16))
    assert tower.hidden[0].compute_dtype == "bfloat16" and out.dtype == tf.float32
