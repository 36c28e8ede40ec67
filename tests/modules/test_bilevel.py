"""Bilevel weighting: its loss, the hypergradient against the exact one, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import Phase
from modules.features import HELD_OUT
from modules.metrics.auc import auc
from modules.objectives.task_loss import task_losses
from modules.objectives.weighting import bilevel
from modules.objectives.weighting.methods import WEIGHTINGS
from modules.objectives.weighting.shared_gradients import shared_gradients
from tests.modules.fitting import fit
from tests.modules.weighing import HELD_OUT_ROWS, D, linear, problem, spec_of, weigh


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
        return tf.add_n([*bilevel.validation_losses(self.seen, *given).values()])

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


def test_bilevel_gives_shares_the_hypergradient_and_the_model_the_weighted_losses():
    spec = spec_of("bilevel", 2.0, 0.5, 1.0, weighting_rate=2.0)
    method = WEIGHTINGS["bilevel"](spec)
    method.lambdas.log_lambda.assign([0.1, -0.3, 0.2])
    user_BKD, logits_of, batch, _ = problem(spec)
    got = weigh(method, spec)
    mask, held_out = batch["target_mask"].numpy(), batch[HELD_OUT].numpy()[:, None]

    def losses_of(user_BKD):
        logits = logits_of(user_BKD)
        outer = bilevel.validation_losses(spec.tasks, logits, batch, mask & held_out)
        losses, _ = task_losses(spec, logits, batch, mask & ~held_out)
        return losses | {f"F {name}": value for name, value in outer.items()}

    losses, gradients = shared_gradients(losses_of, user_BKD)
    inner, outer = gradients.numpy()[:3], gradients.numpy()[3:]
    norms = np.linalg.norm(inner, axis=1)
    softmax = np.array([2.0, 0.5, 1.0]) * np.exp(2 * np.array([0.1, -0.3, 0.2]))
    softmax /= softmax.sum()
    lambdas = 3.5 * softmax * (softmax @ norms) / norms
    np.testing.assert_allclose([*got.lambdas.values()], lambdas, rtol=1e-4)
    units = inner / norms[:, None]
    outer /= np.linalg.norm(outer, axis=1, keepdims=True)
    descent = -units @ outer.mean(0)
    by_log = softmax * (descent - softmax @ descent)
    np.testing.assert_allclose(got.by_lambda[0], by_log, rtol=1e-4, atol=1e-6)
    named = [losses[task.name] for task in spec.tasks]
    np.testing.assert_allclose(got.total, lambdas @ np.array(named), rtol=1e-4)


def test_bilevel_starts_with_gradients_in_the_ratio_of_the_weights():
    spec = spec_of("bilevel", 2.0, 1.0, 1.0)
    user_BKD, logits_of, batch, _ = problem(spec, missing=0.0)
    louder = {"task_1": 100.0}

    def of(user_BKD):
        return {name: louder.get(name, 1.0) * x for name, x in logits_of(user_BKD).items()}

    weighted = WEIGHTINGS["bilevel"](spec)(user_BKD, of, batch, tf.constant(0, tf.int64))

    def losses_of(user_BKD):
        mask = batch["target_mask"] & ~batch[HELD_OUT][:, None]
        return task_losses(spec, of(user_BKD), batch, mask)[0]

    norms = np.linalg.norm(shared_gradients(losses_of, user_BKD)[1], axis=1)
    assert norms[1] > 20 * norms[0]
    parts = norms * np.array([*weighted.lambdas.values()])
    np.testing.assert_allclose(parts / parts[1], [2.0, 1.0, 1.0], rtol=1e-4)
    assert parts.sum() == pytest.approx(norms @ [2.0, 1.0, 1.0], rel=1e-4)


def test_a_task_with_next_to_no_gradient_leaves_the_others_theirs():
    share = tf.constant([1.0, 2.0, 1.0])
    norms = np.array([0.5, 2.0, 1e-9], np.float32)
    parts = bilevel.balanced(share, tf.constant(norms)).numpy() * norms
    np.testing.assert_allclose(parts, [1.125, 2.25, 1.125], rtol=1e-5)
    norms[2] = 0.0
    parts = bilevel.balanced(share, tf.constant(norms)).numpy() * norms
    np.testing.assert_allclose(parts, [1.5, 3.0, 0.0], rtol=1e-5)


def test_what_lambda_learn_from_is_too_small_to_clip_the_models_gradient():
    """Gradients are clipped together, and λ's own is multiplied by rate and weights."""
    spec = spec_of("bilevel", 30.0, 10.0, 50.0)
    assert np.linalg.norm(weigh(WEIGHTINGS["bilevel"](spec), spec).by_lambda[0]) < 0.5


def test_shares_descend_f_of_a_step_along_the_balanced_gradients():
    """By differences, of θ' = θ - η · Σ_k s_k · ∇L_k / ‖∇L_k‖: norms are constants to s."""
    tiny, eta, small = Tiny(), 1e-3, 0.1
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tiny.layer)
        losses = tiny.losses([tiny.layer, *tiny.heads])
        outer = tiny.outer([tiny.layer, *tiny.heads])
    rows = tf.stack([tf.reshape(tape.gradient(loss, tiny.layer), [-1]) for loss in losses])
    units = rows / tf.norm(rows, axis=1, keepdims=True)
    by_outer = tf.reshape(tape.gradient(outer, tiny.layer), [-1])

    def after(share):
        step = tf.reshape(tf.tensordot(tf.constant(share, tf.float32), units, 1), tiny.layer.shape)
        return tiny.outer([tiny.layer - eta * step, *tiny.heads]).numpy()

    share = np.ones(4)
    there = [(after(share + small * e) - after(share - small * e)) / 2 / small for e in np.eye(4)]
    np.testing.assert_allclose(
        bilevel.hypergradient(by_outer, units, eta), there, rtol=0.05, atol=1e-6
    )


def test_a_task_without_labels_in_a_batch_weighs_nothing_in_it():
    spec = spec_of("bilevel", 1.0, 2.0)
    user_BKD, logits_of, batch, _ = problem(spec, missing=0.0)
    batch["label_task_0"] = tf.fill(batch["label_task_0"].shape, np.nan)
    method = WEIGHTINGS["bilevel"](spec)
    weighted = method(user_BKD, logits_of, batch, tf.constant(0, tf.int64))
    assert weighted.lambdas["task_0"] == 0
    assert float(weighted.lambdas["task_1"]) == pytest.approx(2.0)
    assert np.isfinite(weighted.total)


def test_bilevel_trains_on_no_label_of_the_rows_it_validates_on():
    spec = spec_of("bilevel", 1.0, 1.0)
    method = WEIGHTINGS["bilevel"](spec)
    user_BKD, logits_of, batch, _ = problem(spec, missing=0.0)
    with tf.GradientTape() as tape:
        tape.watch(user_BKD)
        losses = method(user_BKD, logits_of, batch, tf.constant(0, tf.int64)).losses
        total = tf.add_n([*losses.values()])
    untrained = np.all(tape.gradient(total, user_BKD).numpy() == 0, axis=(1, 2))
    assert tuple(np.flatnonzero(untrained)) == HELD_OUT_ROWS


def test_lambda_stay_where_a_batch_has_nobody_held_out():
    spec = spec_of("bilevel", 1.0, 2.0)
    user_BKD, logits_of, batch, _ = problem(spec)
    method = WEIGHTINGS["bilevel"](spec)
    batch[HELD_OUT] = tf.zeros_like(batch[HELD_OUT])
    with tf.GradientTape() as tape:
        total = method(user_BKD, logits_of, batch, tf.constant(0, tf.int64)).total
    by_lambda = tape.gradient(total, method.lambdas.log_lambda)
    np.testing.assert_array_equal(by_lambda, [0, 0])


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
    of the two, held out, and what was trained."""
    spec = spec_of(weighting, 1.0, 1.0, 100.0, **finetune)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(17408, 1, 32)).astype(np.float32)
    labels = x[..., [0, 0, 1]] + 0.3 * rng.normal(size=(17408, 1, 3)) > 0
    labels[..., 2] = rng.random((17408, 1)) < 0.5
    batch = {f"label_task_{i}": labels[..., i].astype(np.float32) for i in range(3)}
    batch |= {"x": x, "target_mask": np.ones((17408, 1), bool)}
    batch[HELD_OUT] = np.arange(17408) % 8 == 0
    batch = {name: tf.constant(value[:16384]) for name, value in batch.items()}
    module = Narrow(spec)
    module.loss(batch, tf.constant(0, tf.int64))
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(64)
    phase = Phase(epochs=1, learning_rate=0.02)
    fit(module, module.loss, dataset, 256, phase, str(tmp_path))
    logits = module.logits_of(x[16384:])
    return [auc(labels[16384:, 0, i], logits[f"task_{i}"].numpy()[:, 0]) for i in (0, 1)], module


def test_bilevel_finds_that_a_heavy_task_teaches_nothing_that_holds(tmp_path):
    """No training loss tells noise from a task: the rows held out do."""
    static, _ = beside_noise("static", tmp_path / "static")
    learned, module = beside_noise("bilevel", tmp_path / "bilevel")
    assert max(static) < 0.9
    assert min(learned) > 0.95
    assert module.weighting.lambdas()[2] < 50  # its share of the step, 100 at the start
