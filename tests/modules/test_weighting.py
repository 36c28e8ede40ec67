"""Weightings of the tasks' losses: their equations against NumPy, their gradients, what they
learn."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import types
import typing

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import Finetuning, Phase
from modules.features import as_ragged, pad
from modules.metrics.auc import auc
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.objectives.task_loss import task_losses
from modules.objectives.weighting import bilevel, gradnorm, pcgrad
from modules.objectives.weighting.methods import WEIGHTINGS
from modules.objectives.weighting.shared_gradients import shared_gradients
from modules.training.checkpoint.dense import dense_snapshot
from modules.training.saving import large_shards, trained_objects
from tests.modules.conftest import ROWS, make_spec, random_instances
from tests.modules.fitting import fit

B, K, D = 8, 3, 4
LEARNED = ["uncertainty", "gradnorm", "bilevel"]


def spec_of(weighting, *weights, kind="binary", **finetune):
    tasks = [
        {"name": f"task_{i}", "label": f"y_{i}", "type": kind, "weight": weight}
        for i, weight in enumerate(weights)
    ]
    return make_spec(tasks=tasks, training={"finetune": {"weighting": weighting} | finetune})


def problem(spec, seed=0, missing=0.2):
    """H, linear heads and labels of every task, some missing; the last target is padding."""
    rng = np.random.default_rng(seed)
    user_BKD = tf.constant(rng.normal(size=(B, K, D)), tf.float32)
    heads = {t.name: tf.constant(rng.normal(size=(D, 1)), tf.float32) for t in spec.tasks}
    batch = {"target_mask": tf.constant(np.arange(B * K).reshape(B, K) < B * K - 1)}
    for task in spec.tasks:
        label = rng.integers(0, 2, (B, K)).astype(np.float32)
        label[rng.random((B, K)) < missing] = np.nan
        batch[task.label_feature] = tf.constant(label)
    return user_BKD, functools.partial(linear, heads), batch, heads


def linear(heads, user_BKD):
    return {name: tf.squeeze(tf.matmul(user_BKD, head), -1) for name, head in heads.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_spec_may_name_just_these():
    named = typing.get_args(Finetuning.model_fields["weighting"].annotation)
    assert set(named) == WEIGHTINGS.keys()


def test_shared_gradients_are_those_of_a_layer_put_before_the_heads():
    spec = spec_of("static", 1.0, 1.0)
    user_BKD, logits_of, batch, heads = problem(spec)

    def losses_of(user_BKD):
        return task_losses(spec, logits_of(user_BKD), batch, batch["target_mask"])[0]

    losses, gradients_NP = shared_gradients(losses_of, user_BKD)
    expected = losses_of(user_BKD)
    for i, (name, head) in enumerate(heads.items()):
        assert losses[name] == expected[name]
        label = batch[f"label_{name}"].numpy()
        present = ~np.isnan(label) & batch["target_mask"].numpy()
        score = (user_BKD.numpy() @ head.numpy())[..., 0]
        error = np.where(present, sigmoid(score) - np.nan_to_num(label), 0) / present.sum()
        inputs = np.concatenate([user_BKD, np.ones((B, K, 1))], axis=-1)
        by_layer = np.einsum("bki,bk,d->id", inputs, error, head.numpy()[:, 0])
        np.testing.assert_allclose(gradients_NP[i], by_layer.ravel(), atol=1e-6)


def test_losses_keep_their_gradient_and_shared_gradients_are_constants():
    spec = spec_of("static", 1.0)
    user_BKD, logits_of, batch, _ = problem(spec)

    def losses_of(user_BKD):
        return task_losses(spec, logits_of(user_BKD), batch, batch["target_mask"])[0]

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(user_BKD)
        plain = losses_of(user_BKD)["task_0"]
        losses, gradients = shared_gradients(losses_of, user_BKD)
        norm = tf.norm(gradients)
    expected = tape.gradient(plain, user_BKD)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(tape.gradient(losses["task_0"], user_BKD), expected)
    assert tape.gradient(norm, user_BKD) is None


def test_static_is_equation_9():
    spec = spec_of("static", 0.5, 3.0)
    user_BKD, logits_of, batch, _ = problem(spec)
    out = WEIGHTINGS["static"](spec)(user_BKD, logits_of, batch, tf.constant(0, tf.int64))
    np.testing.assert_allclose(
        out.total, 0.5 * out.losses["task_0"] + 3.0 * out.losses["task_1"], rtol=1e-6
    )
    assert out.lambdas == {}


def weigh(method, spec, step=0, seed=0, **kwargs):
    """A step of `method`: what it gives, and the gradient of its total by log λ and by H."""
    user_BKD, logits_of, batch, _ = problem(spec, seed, **kwargs)
    variables = list(method.trainable_variables) if isinstance(method, tf.Module) else []
    with tf.GradientTape() as tape:
        tape.watch(user_BKD)
        out = method(user_BKD, logits_of, batch, tf.constant(step, tf.int64))
    by_lambda, by_user = tape.gradient(out.total, (variables, user_BKD))
    return types.SimpleNamespace(**out._asdict(), by_lambda=by_lambda, by_user=by_user)


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


@pytest.mark.parametrize("name", LEARNED)
def test_a_task_without_labels_keeps_every_gradient_finite(name):
    spec = spec_of(name, 1.0, 1.0)
    method = WEIGHTINGS[name](spec)
    got = weigh(method, spec, missing=1.1)
    assert np.isfinite(got.total) and np.isfinite(got.by_user).all()
    np.testing.assert_array_equal(got.by_lambda[0], [0, 0])  # nothing is learned of nothing


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


def test_hinge_auc_is_the_mean_over_pairs():
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(6, 5)), rng.random((6, 5)) < 0.8
    labels = rng.integers(0, 2, (6, 5)).astype(np.float32)
    labels[rng.random((6, 5)) < 0.3] = np.nan
    of = {y: logits[mask & (labels == y)] for y in (0, 1)}
    pairs = [max(0, 1 - (p - n)) for p in of[1] for n in of[0]]
    assert min(pairs) == 0  # a pair that is far enough apart counts nothing
    args = tf.constant(logits, tf.float32), tf.constant(labels)
    np.testing.assert_allclose(bilevel.hinge_auc(*args, mask), np.mean(pairs), rtol=1e-5)
    assert bilevel.hinge_auc(*args, np.zeros_like(mask)) == 0


class Tiny:
    """A shared layer under fixed heads; tasks 0 and 1 agree, 2 is their opposite, 3 is noise."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.spec = spec_of("static", 1.0, 1.0, 1.0, 1.0)
        truth, head = rng.normal(size=(D, 1)), rng.normal(size=(3, 1))
        self.x = {part: rng.normal(size=(200, 1, D)).astype(np.float32) for part in ("a", "b")}
        self.batches = {}
        for part, x in self.x.items():
            label = (x @ truth)[..., 0] + 0.5 * rng.normal(size=(200, 1)) > 0
            labels = [label, label, ~label, rng.random((200, 1)) < 0.5]
            batch = {f"label_task_{i}": y.astype(np.float32) for i, y in enumerate(labels)}
            self.batches[part] = batch | {"target_mask": np.ones((200, 1), bool)}
        self.heads = [tf.constant(head + 0.3 * rng.normal(size=(3, 1)), tf.float32)] * 4
        self.layer = tf.constant(0.2 * rng.normal(size=(D, 3)), tf.float32)
        self.lambdas = tf.constant([1.0, 0.5, 0.8, 1.2])
        self.seen = self.spec.tasks[:2]  # that F is about

    def logits(self, part, weights):
        layer, *heads = weights
        user = tf.constant(self.x[part]) @ layer
        named = zip(self.spec.tasks, heads, strict=True)
        return linear({task.name: head for task, head in named}, user)

    def losses(self, weights):
        batch = self.batches["a"]
        given = self.spec, self.logits("a", weights), batch, batch["target_mask"]
        return [*task_losses(*given)[0].values()]

    def outer(self, weights):
        batch = self.batches["b"]
        given = self.logits("b", weights), batch, batch["target_mask"]
        return bilevel.validation_loss(self.seen, *given)

    def exact(self, eta, trained):
        """dF(θ')/dλ through the inner step, θ the first `trained` weights."""
        weights = [self.layer, *self.heads]
        with tf.GradientTape() as unrolled:
            unrolled.watch(self.lambdas)
            with tf.GradientTape() as inner:
                inner.watch(weights)
                total = tf.tensordot(self.lambdas, tf.stack(self.losses(weights)), 1)
            moved = inner.gradient(total, weights)[:trained]
            stepped = [w - eta * g for w, g in zip(weights, moved, strict=False)]
            outer = self.outer(stepped + weights[trained:])
        return unrolled.gradient(outer, self.lambdas).numpy()

    def approximate(self, eta):
        weights = [self.layer, *self.heads]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(self.layer)
            losses, outer = self.losses(weights), self.outer(weights)
        rows = [tf.reshape(tape.gradient(loss, self.layer), [-1]) for loss in losses]
        by_outer = tf.reshape(tape.gradient(outer, self.layer), [-1])
        return bilevel.hypergradient(by_outer, tf.stack(rows), eta).numpy()


def test_the_hypergradient_is_exact_over_all_shared_weights_as_the_step_goes_to_0():
    tiny = Tiny()

    def error(eta):
        exact = tiny.exact(eta, trained=1)
        return np.abs(tiny.approximate(eta) - exact).max() / np.abs(exact).max()

    errors = [error(eta) for eta in (1.0, 0.1, 0.01)]
    assert errors[0] > 0.01  # else there is nothing to approximate
    assert errors[1] < 0.2 * errors[0] and errors[2] < 2e-3


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_the_hypergradient_ranks_tasks_as_the_exact_one_where_heads_are_trained_too(eta):
    tiny = Tiny()
    exact, approximate = tiny.exact(eta, trained=5), tiny.approximate(eta)
    assert exact[0] < 0 and exact[1] < 0 < exact[2]  # what helps gets more, what harms less
    np.testing.assert_array_equal(np.sign(approximate[:3]), np.sign(exact[:3]))
    np.testing.assert_array_equal(np.argsort(approximate), np.argsort(exact))


def test_bilevel_gives_lambda_the_hypergradient_and_the_model_the_weighted_losses():
    spec = spec_of("bilevel", 2.0, 0.5, 1.0, weighting_rate=2.0)
    method = WEIGHTINGS["bilevel"](spec)
    method.lambdas.log_lambda.assign([0.1, -0.3, 0.2])
    user_BKD, logits_of, batch, _ = problem(spec)
    got = weigh(method, spec, step=1)
    held_out = ((np.arange(B) + 1) % 8 == 0)[:, None]
    mask = batch["target_mask"].numpy()

    def losses_of(user_BKD):
        logits = logits_of(user_BKD)
        outer = bilevel.validation_loss(spec.tasks, logits, batch, mask & held_out)
        return {"": outer} | task_losses(spec, logits, batch, mask & ~held_out)[0]

    losses, gradients = shared_gradients(losses_of, user_BKD)
    softmax = np.array([2.0, 0.5, 1.0]) * np.exp(2 * np.array([0.1, -0.3, 0.2]))
    softmax /= softmax.sum()
    np.testing.assert_allclose([*got.lambdas.values()], 3.5 * softmax, rtol=1e-5)
    inner = gradients[1:].numpy()
    descent = -inner @ gradients[0].numpy()
    descent /= np.linalg.norm(inner) * np.linalg.norm(gradients[0])
    by_softmax = 3.5 * 2 * softmax * (descent - softmax @ descent)
    np.testing.assert_allclose(got.by_lambda[0], by_softmax, rtol=1e-4, atol=1e-6)
    named = [losses[task.name] for task in spec.tasks]
    np.testing.assert_allclose(got.total, 3.5 * softmax @ np.array(named), rtol=1e-5)


def test_bilevel_trains_on_no_label_of_the_rows_it_validates_on():
    spec = spec_of("bilevel", 1.0, 1.0)
    method = WEIGHTINGS["bilevel"](spec)
    user_BKD, logits_of, batch, _ = problem(spec, missing=0.0)
    untrained = np.zeros([8, B], bool)
    for step in range(8):
        with tf.GradientTape() as tape:
            tape.watch(user_BKD)
            losses = method(user_BKD, logits_of, batch, tf.constant(step, tf.int64)).losses
            total = tf.add_n([*losses.values()])
        untrained[step] = np.all(tape.gradient(total, user_BKD).numpy() == 0, axis=(1, 2))
    np.testing.assert_array_equal(untrained.sum(axis=0), np.ones(B))  # each, one step in eight
    np.testing.assert_array_equal(untrained.sum(axis=1), np.ones(8))


class Narrow(tf.Module):
    """One number is all that the tasks' towers know of a user."""

    def __init__(self, spec):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.spec = spec
        self.shared = keras.layers.Dense(1, name="shared")
        self.towers = [keras.layers.Dense(1, name=f"tower_{i}") for i in range(len(spec.tasks))]
        self.weighting = WEIGHTINGS[spec.training.finetune.weighting](spec)

    def logits_of(self, user):
        narrow, named = self.shared(user), zip(self.spec.tasks, self.towers, strict=True)
        return {task.name: tower(narrow)[..., 0] for task, tower in named}

    def loss(self, batch, step):
        out = self.weighting(batch["x"], self.logits_of, batch, step)
        values = {f"lambda/{name}": value for name, value in out.lambdas.items()}
        return out.total, values


def beside_noise(weighting, tmp_path, **finetune):
    """Two tasks that ask for one direction of x, and a heavy one whose labels are noise: the AUC
    of the two, held out, and the last epoch's λ."""
    spec = spec_of(weighting, 1.0, 1.0, 100.0, **finetune)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(17408, 1, 32)).astype(np.float32)
    labels = x[..., [0, 0, 1]] + 0.3 * rng.normal(size=(17408, 1, 3)) > 0
    labels[..., 2] = rng.random((17408, 1)) < 0.5
    batch = {f"label_task_{i}": labels[..., i].astype(np.float32) for i in range(3)}
    batch |= {"x": x, "target_mask": np.ones((17408, 1), bool)}
    batch = {name: tf.constant(value[:16384]) for name, value in batch.items()}
    module = Narrow(spec)
    module.loss(batch, tf.constant(0, tf.int64))
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(64)
    phase = Phase(epochs=1, learning_rate=0.02)
    fit(module, module.loss, dataset, 256, phase, str(tmp_path))
    logits = module.logits_of(x[16384:])
    end = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[-1])
    lambdas = [end.get(f"lambda/task_{i}") for i in range(3)]
    return [auc(labels[16384:, 0, i], logits[f"task_{i}"].numpy()[:, 0]) for i in (0, 1)], lambdas


def test_bilevel_finds_that_a_heavy_task_teaches_nothing_that_holds(tmp_path):
    """No training loss tells noise from a task: the rows held out do."""
    static, _ = beside_noise("static", tmp_path / "static")
    learned, lambdas = beside_noise("bilevel", tmp_path / "bilevel", weighting_rate=3.0)
    assert max(static) < 0.9
    assert min(learned) > 0.95
    assert lambdas[2] < 50  # of 100, on average over the training


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_lambdas_are_trained_with_the_model_and_saved_and_told(name, tmp_path):
    spec = make_spec(
        tasks=[
            {"name": "click", "label": "clicked"},
            {"name": "adult", "per": "user", "label": "age"},
        ],
        model={"architecture": "mmoe", "hidden_dim": 16, "tower_dims": []},
        training={"pretrain": {"epochs": 0}, "finetune": {"weighting": name}},
    )
    keras.utils.set_random_seed(0)
    batch = pad(as_ragged(random_instances(spec, [20, 24, 15, 7], [8, 8, 8, 8]), spec), spec)
    model = UserModel(spec, ROWS)
    model(batch)
    learned = [v for v in model.trainable_variables if "log_lambda" in v.name]
    assert len(learned) == (name in LEARNED)
    for variable in learned:
        assert any("log_lambda" in k for k in _saved(model)), "not in the checkpoint"
        np.testing.assert_array_equal(variable, np.zeros(len(spec.tasks)))
    dataset = tf.data.Dataset.from_tensors(batch)
    told = {}

    def loss(batch, step):
        total, values = multi_task_loss(model, batch, step)
        told.update(values)
        return total, values

    fit(model, loss, dataset, 1, Phase(epochs=3), str(tmp_path))
    lambdas = {n for n in told if n.startswith("lambda/")}
    assert lambdas == ({f"lambda/{t.name}" for t in spec.tasks} if name != "static" else set())
    for variable in learned:
        assert np.abs(variable).min() > 0 and np.isfinite(variable).all()


def _saved(model):
    return dense_snapshot(trained_objects(model), large_shards(model))


def test_replicas_weigh_as_one_process_does():
    """Two devices need a process of their own."""
    child = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def weigh_in_parts() -> None:
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for name in sorted(WEIGHTINGS.keys() - {"static"}):
        spec = spec_of(name, 1.0, 2.0, 0.5)
        user_BKD, logits_of, batch, _ = problem(spec)
        parts = _halves(strategy, batch | {"user": user_BKD})
        with strategy.scope():
            method = WEIGHTINGS[name](spec)

        @tf.function(autograph=False)
        def shares(part, method=method, logits_of=logits_of):
            variables = list(method.trainable_variables) if isinstance(method, tf.Module) else []
            with tf.GradientTape() as tape:
                step = tf.constant(0, tf.int64)
                out = method(part["user"], logits_of, part, step)
            return out.total, list(out.lambdas.values()), tape.gradient(out.total, variables)

        values = strategy.run(shares, args=(parts,))
        one, other = (
            tf.nest.map_structure(lambda v, i=i: strategy.experimental_local_results(v)[i], values)
            for i in range(2)
        )
        if name == "bilevel":  # holds out rows of each replica
            np.testing.assert_allclose(one[2][0], other[2][0], atol=1e-6)
            assert np.abs(one[2][0]).max() > 0
            continue
        alone = weigh(WEIGHTINGS[name](spec), spec)
        np.testing.assert_allclose(one[0] + other[0], alone.total, rtol=1e-5)
        np.testing.assert_allclose(
            np.add(one[1], other[1]), [*alone.lambdas.values()], rtol=1e-5, err_msg=name
        )
        for a, b, whole in zip(one[2], other[2], alone.by_lambda, strict=True):
            np.testing.assert_allclose(a + b, whole, rtol=1e-4, atol=1e-6, err_msg=name)


def _halves(strategy, batch):
    def part(context):
        place = context.replica_id_in_sync_group
        return {name: value[place::2] for name, value in batch.items()}

    return strategy.experimental_distribute_values_from_function(part)


if __name__ == "__main__":
    weigh_in_parts()
