"""From positions to H: each pooling against NumPy, and its prefixes against itself."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from modules.layers.pooling import LAST, MAX, MAX_MEAN, MEAN

REFERENCE = {
    "max": (MAX, lambda h: h.max(0)),
    "mean": (MEAN, lambda h: h.mean(0)),
    "max_mean": (MAX_MEAN, lambda h: np.concatenate([h.max(0)[:2], h.mean(0)[2:]])),
    "last": (LAST, lambda h: h[-1]),
}
LENGTHS = [1, 4, 6]


@pytest.fixture(params=REFERENCE)
def pooling(request):
    return REFERENCE[request.param]


@pytest.fixture
def hidden():
    return tf.random.stateless_normal([3, 6, 4], seed=[0, 0])


def mask():
    return tf.sequence_mask(LENGTHS, 6)


def test_whole(pooling, hidden):
    (whole, _), reference = pooling
    expected = [reference(h[:length]) for h, length in zip(hidden.numpy(), LENGTHS, strict=True)]
    np.testing.assert_allclose(whole(hidden, mask()), expected, rtol=1e-6)


def test_prefixes(pooling, hidden):
    (_, prefixes), reference = pooling
    found = prefixes(hidden, mask()).numpy()
    for row, length in enumerate(LENGTHS):
        for end in range(1, length + 1):
            expected = reference(hidden.numpy()[row, :end])
            np.testing.assert_allclose(found[row, end - 1], expected, rtol=1e-5, atol=1e-6)


def test_nothing_visible_is_zero(pooling, hidden):
    (whole, _), _ = pooling
    np.testing.assert_array_equal(whole(hidden, tf.zeros([3, 6], tf.bool)), np.zeros((3, 4)))
