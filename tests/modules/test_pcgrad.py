"""PCGrad: its algorithm against NumPy, and that no task is hurt by a step."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf

from modules.objectives.task_loss import task_losses
from modules.objectives.weighting import pcgrad
from modules.objectives.weighting.methods import WEIGHTINGS
from tests.modules.weighing import D, linear, problem, spec_of


def numpy_surgery(gradients_KP, order_KK):
    """Yu et al., algorithm 1, on the vectors themselves."""
    result = []
    for i, order in enumerate(order_KK):
        g = gradients_KP[i].copy()
        for j in order:
            if j != i and g @ gradients_KP[j] < 0:
                g -= g @ gradients_KP[j] / (gradients_KP[j] @ gradients_KP[j]) * gradients_KP[j]
        result.append(g)
    return np.sum(result, axis=0)


@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_surgery_is_pcgrads_algorithm(num_tasks):
    gradients_KP = np.random.default_rng(num_tasks).normal(size=(num_tasks, 6))
    gradients_KP[1:] -= gradients_KP[0]  # some are in conflict
    gram = gradients_KP @ gradients_KP.T
    assert num_tasks == 1 or (gram < 0).any()
    for seed in range(4):
        seeds = tf.constant([3, seed], tf.int64)
        order = tf.argsort(tf.random.stateless_uniform([num_tasks, num_tasks], seeds)).numpy()
        got = pcgrad.surgery(tf.constant(gram, tf.float32), seeds).numpy() @ gradients_KP
        np.testing.assert_allclose(got, numpy_surgery(gradients_KP, order), atol=1e-5)


def test_pcgrad_weighs_tasks_that_agree_as_the_spec_does():
    spec = spec_of("pcgrad", 0.5, 2.0)
    user_BKD, _, batch, heads = problem(spec)
    batch["label_task_1"] = batch["label_task_0"]
    logits_of = functools.partial(linear, dict.fromkeys(heads, heads["task_0"]))
    out = WEIGHTINGS["pcgrad"](spec)(user_BKD, logits_of, batch, tf.constant(0))
    np.testing.assert_allclose([*out.lambdas.values()], [0.5, 2.0])


def test_pcgrad_hurts_no_task_where_the_sum_of_gradients_does():
    """Two tasks in conflict, one with a far larger gradient: a step along the sum raises the other
    one's loss, a step along PCGrad's lowers both."""
    spec = spec_of("pcgrad", 1.0, 10.0)
    user_BKD, _, batch, heads = problem(spec, missing=0.0)
    batch["label_task_1"] = 1 - batch["label_task_0"]
    small = 0.1 * heads["task_0"]
    tilted = {"task_0": small, "task_1": small + 0.1 * heads["task_1"]}
    logits_of = functools.partial(linear, tilted)
    rises = {}
    for name in ("static", "pcgrad"):
        method, layer, bias = WEIGHTINGS[name](spec), tf.eye(D), tf.zeros(D)
        with tf.GradientTape() as tape:
            tape.watch((layer, bias))
            out = method(user_BKD @ layer + bias, logits_of, batch, tf.constant(0))
        by_layer, by_bias = tape.gradient(out.total, (layer, bias))
        moved = user_BKD @ (layer - 1e-3 * by_layer) + (bias - 1e-3 * by_bias)
        after = task_losses(spec, logits_of(moved), batch, batch["target_mask"])[0]
        rises[name] = [float(after[n] - loss) for n, loss in out.losses.items()]
    assert rises["static"][0] > 0 > rises["static"][1]
    assert max(rises["pcgrad"]) < 0
