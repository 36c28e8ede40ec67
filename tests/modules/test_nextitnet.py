"""NextItNet's convolutions and blocks (PeterRec eq. 3-4, 6, 11-12) and model patches (eq. 10)."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.architectures import LAYERED
from data.spec import Adapters
from modules.layers.adapter import Adapter, block_patches
from modules.layers.block import MoETransformerBlock
from modules.layers.dilated_convolution import DilatedConvolution, DilatedResidualBlock
from modules.layers.pooling import ENDS
from modules.layers.transformer_block import TransformerBlock
from modules.models.architectures import ARCHITECTURES
from modules.models.tables import embedding_tables
from tests.modules.conftest import ROWS, make_spec, with_architecture

D = 6
INSERTIONS = ("serial", "serial_after", "parallel", "parallel_after")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomize(layer, seed=1):
    """No weight is at a special value any more."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape).astype("float32"))


def convolve(convolution, x, dilation, causal):
    kernel = convolution.taps.kernel.numpy().reshape(3, x.shape[-1], -1)
    y = np.tile(convolution.taps.bias.numpy(), (*x.shape[:2], 1))
    for i in range(x.shape[1]):
        for tap in range(3):
            at = i + dilation * (tap - 2 if causal else tap - 1)
            if 0 <= at < x.shape[1]:
                y[:, i] += x[:, at] @ kernel[tap]
    return y


def norm_relu(norm, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return np.maximum(norm.gamma.numpy() * x + norm.beta.numpy(), 0)


def patch(adapter, x):
    hidden = np.maximum(x @ adapter.down.kernel.numpy() + adapter.down.bias.numpy(), 0)
    return hidden @ adapter.up.kernel.numpy() + adapter.up.bias.numpy()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dilation", [1, 2, 8])
def test_dilated_convolution(causal, dilation):
    convolution = DilatedConvolution(4, dilation, causal)
    x = normal(2, 11, D)
    convolution(x)
    randomize(convolution)
    expected = convolve(convolution, x, dilation, causal)
    np.testing.assert_allclose(convolution(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("insertion", [None, *INSERTIONS])
def test_equations_3_4_and_12(causal, insertion):
    block = DilatedResidualBlock(D, (2, 4), causal)
    mask = np.arange(9) < np.array([[9], [5]])
    x = normal(2, 9, D)
    given = {}
    adapters = {}
    if insertion:
        (given["patch"],) = block_patches([block], Adapters(bottleneck_dim=2, insertion=insertion))
    block(x, mask, **given)
    randomize(block)
    if insertion:
        randomize(given["patch"])
        adapters = given["patch"]._adapters
    y = x
    for i, ((convolution, norm), dilation) in enumerate(zip(block.layers, (2, 4), strict=True)):
        read = y * mask[..., None]
        y = convolve(convolution, read, dilation, causal)
        before, after = adapters.get(f"convolution_{i}"), adapters.get(f"activation_{i}")
        if before:
            y = y + patch(before, read if insertion == "parallel" else y)
        y = norm_relu(norm, y)
        if after:
            y = y + patch(after, read if insertion == "parallel_after" else y)
    np.testing.assert_allclose(block(x, mask, **given), x + y, rtol=1e-3, atol=1e-3)
    assert len(adapters) == {None: 0, "serial_after": 1}.get(insertion, 2)


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_sees_what_its_dilations_reach_and_no_padding(causal):
    block = DilatedResidualBlock(D, (1, 4), causal)
    x, mask = normal(1, 24, D), np.arange(24)[None] < 20
    block(x, mask)
    randomize(block)

    def row_12(x):
        return block(x, mask).numpy()[0, 12]

    seen = []
    for j in range(24):
        moved = x.copy()
        moved[0, j] += 1.0
        if not np.array_equal(row_12(moved), row_12(x)):
            seen.append(j)
    reach = {a + b for a in (0, 1, 2) for b in (0, 4, 8)}
    reach = {12 - r for r in reach} if causal else {12 + r - 5 for r in reach}
    assert set(seen) == {j for j in reach if j < 20}


def test_h_is_the_sum_of_both_ends():
    """Eq. 6: the leading token and the newest event."""
    h, mask = normal(2, 5, D), np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(ENDS.whole(h, mask), h[:, 0] + h[[0, 1], [2, 0]])
    np.testing.assert_array_equal(ENDS.prefixes(h, mask)[0, 1], h[0, 0] + h[0, 1])


def test_dilations_repeat_over_the_blocks():
    spec = make_spec(model={"architecture": "nextitnet", "num_blocks": 3, "dilations": [1, 2, 4]})
    encoder = ARCHITECTURES["nextitnet"].encoder(
        spec, embedding_tables(spec, ROWS, spec.training.finetune)
    )
    dilations = [c.get_config()["dilation"] for b in encoder.blocks for c, _ in b.layers]
    assert dilations == [1, 2, 4, 1, 2, 4]


def blocks():
    yield DilatedResidualBlock(D, (1, 2), True), INSERTIONS
    yield TransformerBlock(D, 2, 8), ("serial", "parallel")
    yield MoETransformerBlock(D, 2, 8, num_experts=2), ("serial", "parallel")


@pytest.mark.parametrize(("block", "insertions"), blocks(), ids=lambda b: type(b).__name__)
def test_new_patches_change_nothing_and_each_one_counts(block, insertions):
    keras.utils.set_random_seed(0)
    x, mask = normal(3, 7, D), np.ones((3, 7), bool)

    def output(**kwargs):
        return tf.nest.flatten(block(x, mask, **kwargs))[0].numpy()

    plain = output()
    assert set(block.insertions) == set(insertions)
    for insertion in insertions:
        (patch,) = block_patches([block], Adapters(bottleneck_dim=2, insertion=insertion))
        np.testing.assert_array_equal(output(patch=patch), plain)
        assert len(patch._adapters) == len(block.insertions[insertion])
        for adapter in patch._adapters.values():
            adapter.up.bias.assign(normal(D))
            assert np.abs(output(patch=patch) - plain).max() > 1e-3
            adapter.up.bias.assign(np.zeros(D))
        assert not set(map(id, patch.weights)) & set(map(id, block.weights))
    np.testing.assert_array_equal(output(), plain)


def test_adapter_is_equation_10_without_its_shortcut():
    adapter = Adapter(2)
    x = normal(3, 5, D)
    assert not adapter(x).numpy().any()
    randomize(adapter)
    np.testing.assert_allclose(adapter(x), patch(adapter, x), rtol=1e-5, atol=1e-5)
    assert adapter.count_params() == 2 * 2 * D + 2 + D
    assert Adapter.from_config(adapter.get_config()).bottleneck_dim == 2


def test_layered_encoders_have_blocks_and_stages():
    for architecture, parts in ARCHITECTURES.items():
        spec = with_architecture(make_spec(model={"num_blocks": 2}), architecture)
        encoder = parts.encoder(spec, embedding_tables(spec, ROWS, spec.training.finetune))
        assert (architecture in LAYERED) == hasattr(encoder, "blocks") == hasattr(encoder, "stages")
