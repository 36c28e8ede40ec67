"""Tasks' losses over vectors that they share, and one step of a weighting on them."""

from __future__ import annotations

import functools
import types

import numpy as np
import tensorflow as tf

from modules.features import HELD_OUT
from tests.modules.conftest import make_spec

B, K, D = 8, 3, 4
HELD_OUT_ROWS = (1, 4)


def spec_of(weighting, *weights, kind="binary", **finetune):
    tasks = [
        {"name": f"task_{i}", "label": f"y_{i}", "type": kind, "weight": weight}
        for i, weight in enumerate(weights)
    ]
    return make_spec(tasks=tasks, training={"finetune": {"weighting": weighting} | finetune})


def problem(spec, seed=0, missing=0.2):
    """H, linear heads and labels of every task, some missing; the last target is padding, and two
    instances are of users held out."""
    rng = np.random.default_rng(seed)
    user_BKD = tf.constant(rng.normal(size=(B, K, D)), tf.float32)
    heads = {t.name: tf.constant(rng.normal(size=(D, 1)), tf.float32) for t in spec.tasks}
    batch = {"target_mask": tf.constant(np.arange(B * K).reshape(B, K) < B * K - 1)}
    batch[HELD_OUT] = tf.constant([row in HELD_OUT_ROWS for row in range(B)])
    for task in spec.tasks:
        label = rng.integers(0, 2, (B, K)).astype(np.float32)
        label[rng.random((B, K)) < missing] = np.nan
        batch[task.label_feature] = tf.constant(label)
    return user_BKD, functools.partial(linear, heads), batch, heads


def linear(heads, user_BKD):
    return {name: tf.squeeze(tf.matmul(user_BKD, head), -1) for name, head in heads.items()}


def weigh(method, spec, step=0, seed=0, **kwargs):
    """A step of `method`: what it gives, and the gradient of its total by log λ and by H."""
    user_BKD, logits_of, batch, _ = problem(spec, seed, **kwargs)
    variables = list(method.trainable_variables) if isinstance(method, tf.Module) else []
    with tf.GradientTape() as tape:
        tape.watch(user_BKD)
        out = method(user_BKD, logits_of, batch, tf.constant(step, tf.int64))
    by_lambda, by_user = tape.gradient(out.total, (variables, user_BKD))
    return types.SimpleNamespace(**out._asdict(), by_lambda=by_lambda, by_user=by_user)
