"""GradNorm: its equation 2 against NumPy, and norms that it makes equal."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf
import tf_keras as keras

from modules.objectives.weighting import gradnorm
from modules.objectives.weighting.methods import WEIGHTINGS
from tests.modules.weighing import linear, problem, spec_of


def test_gradnorm_is_equation_2():
    lambdas, norms = np.array([0.5, 1.0, 1.5, 1.0]), np.array([2.0, 0.1, 1.0, 9.0])
    ratios, labelled = np.array([0.9, 0.5, 1.2, 9.0]), np.array([True, True, True, False])
    with tf.GradientTape() as tape:
        variable = tf.constant(lambdas, tf.float32)
        tape.watch(variable)
        got = gradnorm.gradient_imbalance(
            variable, tf.constant(norms, tf.float32), tf.constant(ratios, tf.float32), labelled
        )
    g = (lambdas * norms)[:3]
    aim = g.mean() * (ratios[:3] / ratios[:3].mean()) ** 1.5
    np.testing.assert_allclose(got, np.abs(g - aim).sum() / g.mean(), rtol=1e-5)
    by_lambda = np.append(norms[:3] * np.sign(g - aim) / g.mean(), 0)  # the aim is a constant
    np.testing.assert_allclose(tape.gradient(got, variable), by_lambda, rtol=1e-5)


def test_gradnorm_makes_the_norms_equal_where_tasks_learn_at_one_pace():
    spec = spec_of("gradnorm", 1.0, 1.0)
    user_BKD, _, batch, heads = problem(spec)
    batch["label_task_1"] = batch["label_task_0"]
    small = heads["task_0"] * 1e-3  # the losses stay those of logits 0, the gradients don't
    logits_of = functools.partial(linear, {"task_0": small, "task_1": 5 * small})
    method = WEIGHTINGS["gradnorm"](spec)
    optimizer = keras.optimizers.Adam(0.04)
    for _ in range(100):
        with tf.GradientTape() as tape:
            out = method(user_BKD, logits_of, batch, tf.constant(0))
        optimizer.minimize(out.total, method.trainable_variables, tape=tape)
    np.testing.assert_allclose([*out.lambdas.values()], [10 / 6, 2 / 6], rtol=0.1)
