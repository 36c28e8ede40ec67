"""The training loop: schedule, who is optimized by what, and what the history says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import Phase
from modules.embeddings.table import EmbeddingTable
from modules.features import as_ragged, pad
from modules.models.pretrainer import Pretrainer
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.training.loop import Preempted
from modules.training.step import WarmupCosine
from tests.modules.conftest import ROWS, random_instances
from tests.modules.fitting import fit, fit_batch

RATE, TABLE_RATE, DECAY = 0.01, 0.3, 0.1


class Small(tf.Module):
    """A table and two dense layers, one called as a careless spec might call a task."""

    def __init__(self):
        super().__init__()
        self.table = EmbeddingTable(6, 2, "t")
        self.dense = keras.layers.Dense(3, name="norm_bias_beta", bias_initializer="ones")
        self.norm = keras.layers.LayerNormalization(beta_initializer="ones")
        self.norm(self.dense(tf.ones([1, 2])))
        self.log_lambda = tf.Variable([1.0, -2.0], name="log_lambda")

    @property
    def kernel(self) -> tf.Variable:
        return self.dense.kernel

    @property
    def undecayed(self) -> list[tf.Variable]:
        return [self.dense.bias, self.norm.gamma, self.norm.beta, self.log_lambda]


def train(module, loss_fn, batches, tmp_path, **changes):
    """Runs `fit` over one-number batches; the history's records."""
    phase = Phase(
        **{
            "epochs": 1,
            "learning_rate": RATE,
            "table_learning_rate": TABLE_RATE,
            "weight_decay": DECAY,
        }
        | changes
    )
    dataset = tf.data.Dataset.from_tensor_slices({"x": np.asarray(batches, np.float32)})
    ends = iter(range(100))
    fit(
        module,
        lambda batch, step: loss_fn(batch["x"], step),
        dataset,
        len(batches),
        phase,
        str(tmp_path),
        at_epoch_end=lambda: {"val/click/auc": next(ends) / 10},
    )
    return [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]


def numpy_rate(step, num_steps):
    warmup = 0.05 * num_steps
    progress = min(max((step - warmup) / (num_steps - warmup), 0), 1)
    cosine = 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2
    return RATE * min((step + 1) / warmup, cosine)


def test_schedule_rises_peaks_and_ends_at_a_tenth():
    schedule = WarmupCosine(RATE, 1000)
    got = [float(schedule(tf.constant(step))) for step in (0, 10, 49, 50, 400, 1000, 1100)]
    np.testing.assert_allclose(got, [numpy_rate(s, 1000) for s in (0, 10, 49, 50, 400, 1000, 1100)])
    np.testing.assert_allclose(got[0], RATE / 50)
    np.testing.assert_allclose(got[2:4], RATE)
    np.testing.assert_allclose(got[-2:], RATE / 10)


def test_a_single_step_trains_at_the_peak():
    np.testing.assert_allclose(float(WarmupCosine(RATE, 1)(tf.constant(0))), RATE)


def test_tables_get_adagrad_and_the_rest_adamw(tmp_path):
    module = Small()
    table, kernel = module.table.rows.numpy(), module.kernel.numpy()
    table_gradient = np.array([[30.0, 40.0], [0.3, -0.4]], np.float32)  # Not clipped.
    kernel_gradient = np.array([[0.1, -0.2, 0.3], [0.0, 0.5, -0.6]], np.float32)  # Norm under 1.

    def loss(batch, step):
        rows = module.table(tf.constant([4, 5, 4]))  # A duplicate: two halves of the gradient.
        parts = tf.stack([table_gradient[0] / 2, table_gradient[1], table_gradient[0] / 2])
        return tf.reduce_sum(rows * parts) + tf.reduce_sum(module.kernel * kernel_gradient), {}

    train(module, loss, [0.0], tmp_path)
    accumulator = 0.1 + np.mean(table_gradient**2, axis=1, keepdims=True)
    table[[4, 5]] -= TABLE_RATE * table_gradient / np.sqrt(accumulator)
    np.testing.assert_allclose(module.table.rows, table, rtol=1e-5)
    # Adam's first step is the rate times the sign; the decay comes on top, not through it.
    expected = kernel - RATE * DECAY * kernel - RATE * np.sign(kernel_gradient)
    np.testing.assert_allclose(module.kernel, expected, rtol=1e-4, atol=1e-6)


def test_dense_gradients_are_clipped_together(tmp_path):
    """Adam forgets a gradient's scale, but not that the first was 1000 times the second."""
    module = Small()
    kernel, bias = module.kernel.numpy()[0, 0], module.dense.bias.numpy()[0]

    def loss(batch, step):
        return batch * (3.0 * module.kernel[0, 0] + 4.0 * module.dense.bias[0]), {}

    *_, record = train(module, loss, [100.0, 0.1], tmp_path, weight_decay=0.0)
    assert record["gradient_norm"] == pytest.approx((500 + 0.5) / 2)
    for start, got, direction in (
        (kernel, module.kernel[0, 0], 0.6),
        (bias, module.dense.bias[0], 0.8),
    ):
        m = v = 0.0
        for step, norm in enumerate((1.0, 0.5)):  # 500 is cut to 1; 0.5 stays.
            gradient = norm * direction
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            unbiased = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            rate = float(WarmupCosine(RATE, 2)(step))
            start -= rate * unbiased[0] / np.sqrt(unbiased[1])
        np.testing.assert_allclose(got, start, rtol=1e-5)


def test_decay_leaves_biases_and_norms_alone_whatever_their_layers_are_called(tmp_path):
    module = Small()
    kernel = module.kernel.numpy()
    before = [v.numpy() for v in module.undecayed]
    assert all(v.any() for v in before), "decay must have something to shrink"

    def loss(batch, step):
        variables = [module.kernel, *module.undecayed]
        return 0.0 * tf.add_n([tf.reduce_sum(v) for v in variables]), {}

    train(module, loss, [0.0] * 3, tmp_path)
    rates = [float(WarmupCosine(RATE, 3)(step)) for step in range(3)]
    np.testing.assert_allclose(
        module.kernel, kernel * np.prod([1 - DECAY * r for r in rates]), rtol=1e-5
    )
    for variable, value in zip(module.undecayed, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_history_tells_every_epochs_means_and_every_20th_step(tmp_path):
    module = Small()
    killed = [{"step": 20, "loss": 0.0}, {"step": 0, "kept": True}]
    lines = [json.dumps(record) for record in killed] + ['{"half a li']
    (tmp_path / "history.jsonl").write_text("\n".join(lines))

    def loss(batch, step):
        load = tf.stack([[batch, 1.0 - batch]])
        # A batch's loss is its number: the kernel takes no part but for its gradient.
        value = batch + 0.0 * tf.reduce_sum(module.kernel)
        return value, {"expert_load": load, "step_seen": tf.cast(step, tf.float32)}

    numbers = np.linspace(0, 1, 15)
    numbers = np.concatenate([numbers, numbers[:10]])  # 25 batches an epoch
    kept, *records = train(module, loss, numbers, tmp_path, epochs=2)
    assert kept == killed[1]
    assert [(r["phase"], r["step"], r["epoch"], "epoch_end" in r) for r in records] == [
        ("finetune", 20, 0.8, False),
        ("finetune", 25, 1.0, False),
        ("finetune", 25, 1.0, True),
        ("finetune", 45, 1.8, False),
        ("finetune", 50, 2.0, False),
        ("finetune", 50, 2.0, True),
    ]
    step_20, step_25, first, _, _, second = records
    assert step_20.keys() == {"phase", "step", "epoch", "loss"}
    assert step_20["loss"] == pytest.approx(numbers[:20].mean())
    assert step_25["loss"] == pytest.approx(numbers[20:].mean())
    for end, auc, steps in ((first, 0.0, range(25)), (second, 0.1, range(25, 50))):
        assert end["epoch_end"] and end["val/click/auc"] == auc
        assert end["loss"] == pytest.approx(numbers.mean())
        assert end["step_seen"] == pytest.approx(np.mean(steps))
        load = [[numbers.mean(), 1 - numbers.mean()]]
        np.testing.assert_allclose(end["expert_load"], load, rtol=1e-5)


@pytest.mark.parametrize("bad, noticed", [(3, 5), (5, 5), (21, 25)])
def test_a_loss_that_is_not_finite_stops_the_run_within_its_epoch(tmp_path, bad, noticed):
    module = Small()

    def loss(batch, step):
        factor = tf.where(step == bad - 1, np.inf, 1.0)
        return factor * (1.0 + tf.reduce_sum(tf.square(module.kernel))), {}

    with pytest.raises(FloatingPointError, match=rf"fine-tune: loss is .* at step {noticed};"):
        train(module, loss, [0.0] * 5, tmp_path, epochs=8)


def test_a_loss_that_is_not_finite_is_noticed_within_20_steps(tmp_path):
    module = Small()

    def loss(batch, step):
        return batch * tf.reduce_sum(tf.square(module.kernel)), {}

    with pytest.raises(FloatingPointError, match="at step 20;"):
        train(module, loss, [1.0] * 6 + [np.nan] + [1.0] * 30, tmp_path)


def test_a_stop_between_two_epochs_ends_there_and_tells_the_epoch_once(tmp_path):
    module, stop = Small(), []
    dataset = tf.data.Dataset.from_tensor_slices({"x": np.ones(5, np.float32)})

    def loss(batch, step):
        return batch["x"] * tf.reduce_sum(tf.square(module.kernel)), {}

    def at_epoch_end():
        stop.append(True)
        return {}

    phase = Phase(epochs=3)
    with pytest.raises(Preempted, match="stopped at step 5$"):
        fit(module, loss, dataset, 5, phase, str(tmp_path), at_epoch_end, lambda: bool(stop))
    records = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert [r["step"] for r in records if r.get("epoch_end")] == [5]


def _fitted(module, loss, batch, tmp_path):
    """Every trainable variable before and after some steps without decay."""
    loss(batch, tf.constant(0, tf.int64))
    before = [v.numpy() for v in module.trainable_variables]
    phase = Phase(epochs=3, weight_decay=0.0)
    fit_batch(module, loss, batch, phase, str(tmp_path))
    return zip(module.trainable_variables, before, strict=True)


@pytest.mark.parametrize(  # expanded: test_user_model and test_pretraining_objectives ask each
    # variable for a gradient
    "spec",
    ["causal", pytest.param("expanded", marks=pytest.mark.exhaustive)],
    indirect=True,
)
def test_every_variable_of_both_phases_moves(spec, tmp_path):
    keras.utils.set_random_seed(0)
    batch = pad(as_ragged(random_instances(spec, [20, 24, 15], [8, 8, 8]), spec), spec)
    model, pretrainer = UserModel(spec, ROWS), Pretrainer(spec, ROWS)
    phases = {
        "fine-tune": (model, lambda b, _: multi_task_loss(model, b)),
        "pre-train": (pretrainer, pretrainer.loss),
    }
    for name, (module, loss) in phases.items():
        for variable, before in _fitted(module, loss, batch, tmp_path):
            assert np.isfinite(variable).all(), (name, variable.name)
            assert (variable.numpy() != before).any(), (name, variable.name)
