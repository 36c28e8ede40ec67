"""Uncertainty weighting: Kendall's loss and its gradient, and the noise that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.objectives.weighting.methods import WEIGHTINGS
from tests.modules.weighing import spec_of, weigh


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_uncertainty_is_kendalls_loss(kind):
    spec = spec_of("uncertainty", 0.5, 2.0, kind=kind, weighting_rate=3.0)
    method = WEIGHTINGS["uncertainty"](spec)
    method.log_lambda.assign([0.3, -0.2])
    got = weigh(method, spec)
    s, weight = -3 * np.array([0.3, -0.2]), np.array([0.5, 2.0])
    scale = 0.5 if kind == "regression" else 1.0
    losses = np.array([*got.losses.values()])
    expected = weight * (scale * np.exp(-s) * losses + s / 2)
    np.testing.assert_allclose(got.total, expected.sum(), rtol=1e-5)
    by_s = weight * (-scale * np.exp(-s) * losses + 0.5)
    np.testing.assert_allclose(got.by_lambda[0], -3 * by_s, rtol=1e-5)
    np.testing.assert_allclose([*got.lambdas.values()], weight * scale * np.exp(-s), rtol=1e-5)


def test_uncertainty_learns_the_noise_of_two_regressions():
    spec = spec_of("uncertainty", 1.0, 1.0, kind="regression")
    method = WEIGHTINGS["uncertainty"](spec)
    noise = np.array([0.5, 3.0])
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(2, 500, 1)) * noise[:, None, None]
    batch = {f"label_task_{i}": tf.constant(labels[i], tf.float32) for i in range(2)}
    batch["target_mask"] = tf.ones([500, 1], tf.bool)
    zeros = {f"task_{i}": tf.zeros([500, 1]) for i in range(2)}
    optimizer = keras.optimizers.Adam(0.05)
    for _ in range(150):
        with tf.GradientTape() as tape:
            total = method(tf.zeros([500, 1, 1]), lambda _: zeros, batch, tf.constant(0)).total
        optimizer.minimize(total, [method.log_lambda], tape=tape)
    assert np.allclose(np.mean(labels**2, axis=(1, 2)), noise**2, rtol=0.15)
    np.testing.assert_allclose(
        np.exp(-method.log_lambda), np.mean(labels**2, axis=(1, 2)), rtol=0.03
    )
