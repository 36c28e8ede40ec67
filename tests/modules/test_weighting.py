"""Weightings of the tasks' losses, what all of them keep: shared gradients, missing labels, λ that
are saved and told, replicas."""

from __future__ import annotations

import subprocess
import sys
import typing

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import Finetuning, Phase
from modules.features import HELD_OUT, as_ragged, pad
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.objectives.task_loss import task_losses
from modules.objectives.weighting.methods import WEIGHTINGS
from modules.objectives.weighting.shared_gradients import shared_gradients
from modules.training.checkpoint.dense import dense_snapshot
from modules.training.saving import large_shards, trained_objects
from tests.modules.conftest import ROWS, make_spec, random_instances
from tests.modules.fitting import fit_batch
from tests.modules.weighing import B, K, problem, spec_of, weigh

LEARNED = ["uncertainty", "gradnorm", "bilevel"]


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


@pytest.mark.parametrize("name", LEARNED)
def test_a_task_without_labels_keeps_every_gradient_finite(name):
    spec = spec_of(name, 1.0, 1.0)
    method = WEIGHTINGS[name](spec)
    got = weigh(method, spec, missing=1.1)
    assert np.isfinite(got.total) and np.isfinite(got.by_user).all()
    np.testing.assert_array_equal(got.by_lambda[0], [0, 0])  # nothing is learned of nothing


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
    if name == "bilevel":
        batch[HELD_OUT] = tf.constant([True, False, True, False])
    model = UserModel(spec, ROWS)
    model(batch)
    learned = [v for v in model.trainable_variables if "log_lambda" in v.name]
    assert len(learned) == (name in LEARNED)
    for variable in learned:
        assert any("log_lambda" in k for k in _saved(model)), "not in the checkpoint"
        np.testing.assert_array_equal(variable, np.zeros(len(spec.tasks)))
    told = {}

    def loss(batch, step):
        total, values = multi_task_loss(model, batch, step)
        told.update(values)
        return total, values

    fit_batch(model, loss, batch, Phase(epochs=3), str(tmp_path))
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
        alone = weigh(WEIGHTINGS[name](spec), spec)
        if name == "bilevel":  # what λ learn from pairs rows of each replica; what they are doesn't
            np.testing.assert_allclose(one[2][0], other[2][0], atol=1e-6)
            assert np.abs(one[2][0]).max() > 0
            lambdas = [a + b for a, b in zip(one[1], other[1], strict=True)]
            np.testing.assert_allclose(lambdas, [*alone.lambdas.values()], rtol=1e-4)
            continue
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
