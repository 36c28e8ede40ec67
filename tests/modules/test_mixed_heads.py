"""Shared bottom, MMoE and PLE: against NumPy, against each other, and what gates are for."""

from __future__ import annotations

import itertools
import typing

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.architectures import NOT_PRETRAINED
from data.spec import Model
from modules.features import as_ragged, pad
from modules.layers.experts import ExpertGate, Experts
from modules.layers.multi_gate_mixture import MultiGateMixture
from modules.layers.progressive_extraction import ProgressiveExtraction
from modules.models.architectures import ARCHITECTURES, HEADS
from modules.models.shared_bottom import Bottom
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from tests.modules.conftest import ROWS, make_spec, random_instances

S, F = 5, 3
X = np.random.default_rng(0).normal(size=(7, 2, S)).astype(np.float32)
TASKS = ("a", "b")


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def numpy_experts(layer, x):
    kernel, bias = (v.numpy() for v in layer.trainable_variables)
    return np.maximum(x @ kernel + bias, 0).reshape(*x.shape[:-1], -1, F)


def numpy_gate(layer, x, experts):
    (kernel,) = (v.numpy() for v in layer.trainable_variables)
    assert kernel.shape[-1] == experts.shape[-2]
    weights = np.exp(x @ kernel)
    weights /= weights.sum(-1, keepdims=True)
    return (weights[..., None] * experts).sum(-2)


def assign(to, source):
    to.set_weights(source.get_weights())


def test_the_spec_may_name_just_these():
    (heads, _) = typing.get_args(Model.model_fields["heads"].annotation)
    assert set(typing.get_args(heads)) == HEADS.keys()
    without = {name for name, made_of in ARCHITECTURES.items() if made_of.pretraining is None}
    assert without == set(NOT_PRETRAINED)


def test_mmoe_is_a_gated_sum_of_shared_experts():
    layer = MultiGateMixture(TASKS, 4, F)
    out = layer(X, TASKS)
    experts = numpy_experts(layer.experts, X)
    for task in TASKS:
        expected = numpy_gate(layer.gates[task], X, experts)
        np.testing.assert_allclose(out[task], expected, atol=1e-5)
    assert not np.allclose(out["a"], out["b"])


def test_ple_mixes_own_and_shared_experts_level_by_level():
    layer = ProgressiveExtraction(TASKS, task_experts=2, shared_experts=3, num_levels=3, dim=F)
    out = layer(X, TASKS)
    shared, own = X, dict.fromkeys(TASKS, X)
    for i, level in enumerate(layer.levels):
        experts = {t: numpy_experts(level.own[t], own[t]) for t in TASKS}
        common = numpy_experts(level.shared, shared)
        own = {
            t: numpy_gate(level.gates[t], own[t], np.concatenate([experts[t], common], -2))
            for t in TASKS
        }
        if i < 2:
            everything = np.concatenate([experts["a"], experts["b"], common], -2)
            shared = numpy_gate(level.shared_gate, shared, everything)
        else:
            assert level.shared_gate is None  # nothing would read it
    for task in TASKS:
        np.testing.assert_allclose(out[task], own[task], atol=1e-5)


def test_ple_of_one_task_without_shared_experts_is_an_mlp_mixture():
    ple = ProgressiveExtraction(["a"], task_experts=4, shared_experts=0, num_levels=1, dim=F)
    mixture = MultiGateMixture(["a"], 4, F)
    out, _ = ple(X, ["a"])["a"], mixture(X, ["a"])
    assign(mixture.experts, ple.levels[0].own["a"])
    assign(mixture.gates["a"], ple.levels[0].gates["a"])
    np.testing.assert_allclose(out, mixture(X, ["a"])["a"], atol=1e-6)


def test_mmoe_of_one_expert_is_a_shared_bottom():
    mmoe, bottom = MultiGateMixture(TASKS, 1, F), Bottom(F)
    out, _ = mmoe(X, TASKS), bottom(X, TASKS)
    assign(bottom.layer, mmoe.experts)
    for task in TASKS:
        np.testing.assert_allclose(out[task], bottom(X, TASKS)[task], atol=1e-6)


@pytest.mark.parametrize("levels", [1, 3])
def test_a_tasks_output_is_the_same_whoever_else_is_asked(levels):
    layer = ProgressiveExtraction(TASKS, 2, 1, levels, F)
    both = layer(X, TASKS)
    np.testing.assert_allclose(layer(X, ["b"])["b"], both["b"], atol=1e-6)


def test_half_precision_keeps_the_gates_softmax_in_float32():
    gate, experts = ExpertGate(64, dtype="mixed_bfloat16"), tf.ones([4, 64, F], tf.bfloat16)
    assert gate.logits.dtype_policy.name == "float32"
    assert gate(tf.ones([4, S], tf.bfloat16), experts).dtype == tf.bfloat16
    assert Experts(2, F, dtype="mixed_bfloat16")(X).dtype == tf.bfloat16


def fitted(mixer, x, targets, steps=250):
    """Mean squared error of linear towers over a mixer, trained on two tasks."""
    towers = {task: keras.layers.Dense(1) for task in TASKS}

    def loss():
        mixed = mixer(x, TASKS)
        errors = [tf.reduce_mean((towers[t](mixed[t])[..., 0] - targets[t]) ** 2) for t in TASKS]
        return tf.stack(errors)

    loss()
    variables = mixer.trainable_variables + [
        v for tower in towers.values() for v in tower.trainable_variables
    ]
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(loss())
        optimizer.apply_gradients(zip(tape.gradient(total, variables), variables, strict=True))

    for _ in range(steps):
        step()
    return loss().numpy()


def test_gates_keep_tasks_in_conflict_apart():
    """A task for each half of x, and experts too narrow for both: who shares one fails, gates give
    each task the expert that fits."""
    x = np.random.default_rng(1).normal(size=(256, 9)).astype(np.float32)
    x[:, 8] = 5.0  # gates have no bias
    targets = {"a": x[:, :4].sum(1) / 2, "b": x[:, 4:8].sum(1) / 2}
    shared = fitted(Bottom(1), x, targets)
    assert shared.sum() > 0.8  # of variance 2, one direction explains half
    assert fitted(MultiGateMixture(TASKS, 4, 1), x, targets).max() < 0.1
    assert fitted(ProgressiveExtraction(TASKS, 2, 1, 1, 1), x, targets).max() < 0.1


@pytest.mark.parametrize(
    ("architecture", "heads"), itertools.product(["supermoe", "ple"], [None, *HEADS])
)
def test_any_encoder_goes_with_any_heads(architecture, heads):
    spec = make_spec(
        model={"architecture": architecture, "heads": heads, "hidden_dim": 16, "num_blocks": 1},
        training={"pretrain": {"epochs": 0}},
    )
    model = UserModel(spec, ROWS)
    assert isinstance(model.encoder, ARCHITECTURES[architecture].encoder)
    batch = pad(as_ragged(random_instances(spec, [20, 24], [8, 8]), spec), spec)
    model(batch)
    own = ARCHITECTURES[architecture].heads if heads is None else HEADS[heads]
    expected = own(spec, model.tables)
    expected(tf.zeros([2, 8, 16]), batch, spec.tasks)
    assert [v.shape for v in model.heads.variables] == [v.shape for v in expected.variables]
    with tf.GradientTape() as tape:
        loss, _ = multi_task_loss(model, batch)
    gradients = tape.gradient(loss, model.heads.trainable_variables)
    for variable, gradient in zip(model.heads.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.name
