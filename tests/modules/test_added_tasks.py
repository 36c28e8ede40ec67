"""Tasks added to a frozen model: the equations, what they start from, and what they learn of it."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import Phase, SpecError, Task
from modules.embeddings.table import NUM_RESERVED
from modules.features import as_ragged, pad
from modules.layers.side_network import side_network
from modules.models.added_task import AddedTask
from modules.models.task_bank import Given, TaskWeights, at_end, at_targets, scores
from modules.models.user_model import UserModel
from modules.training.added_tasks import Rows, evaluate, train
from tests.modules.conftest import ROWS, make_spec, random_instances

B, K, T, S, D, BOTTLENECK = 2, 3, 4, 3, 8, 2
CLICK = Task(name="click", label="clicked")
SPEND = Task(name="spend", label="spend", per="user", type="regression")


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def random_weights(bottleneck=BOTTLENECK, seed=0):
    return TaskWeights(
        down=random(T, S, D, bottleneck, seed=seed),
        down_bias=random(T, S, bottleneck, seed=seed),
        up=random(T, S, bottleneck, D, seed=seed + 1),
        user=random(T, D, seed=seed),
        query=random(T, D, D, seed=seed),
        query_bias=random(T, D, seed=seed + 2),
        bias=random(T, seed=seed),
        binary=np.array([True, False, True, True]),
    )


def random_given(rows=B):
    return Given(random(rows, S, D), random(rows, D), random(rows, K, D))


def test_the_equations():
    given, weights = random_given(), random_weights()
    impression, user = scores(given, weights)
    for b in range(B):
        for t in range(T):
            u = given.user[b].astype(np.float64)
            for s in range(S):
                h = given.layers[b, s]
                h = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
                hidden = np.maximum(h @ weights.down[t, s] + weights.down_bias[t, s], 0)
                u = u + hidden @ weights.up[t, s]
            per_user = weights.user[t] @ u + weights.bias[t]
            np.testing.assert_allclose(user[b, t], per_user, rtol=1e-4, atol=1e-4)
            for k in range(K):
                query = u @ weights.query[t] + weights.query_bias[t]
                expected = per_user + given.candidate[b, k] @ query
                np.testing.assert_allclose(impression[b, k, t], expected, rtol=1e-4, atol=1e-4)


def test_a_task_s_answers_dont_depend_on_the_others():
    given, weights = random_given(), random_weights()
    together = scores(given, weights)
    for t in range(T):
        alone = scores(given, TaskWeights(*(weight[t : t + 1] for weight in weights)))
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(many[..., t], one[..., 0], rtol=1e-5, atol=1e-5)


def test_a_bottleneck_filled_up_with_zeros_is_the_same_one():
    given, weights = random_given(), random_weights()
    wide = weights._replace(
        down=np.pad(weights.down, [(0, 0)] * 3 + [(0, 3)]),
        down_bias=np.pad(weights.down_bias, [(0, 0)] * 2 + [(0, 3)]),
        up=np.pad(weights.up, [(0, 0)] * 2 + [(0, 3), (0, 0)]),
    )
    for narrow, padded in zip(scores(given, weights), scores(given, wide), strict=True):
        np.testing.assert_allclose(narrow, padded, rtol=1e-5, atol=1e-5)


def test_before_training_a_task_is_a_head_over_h():
    given = random_given()
    new = AddedTask(CLICK, S, D, BOTTLENECK)
    weights = new.weights
    u = side_network(given.layers, given.user, weights.down, weights.down_bias, weights.up)
    np.testing.assert_array_equal(u[:, 0], given.user)
    of_first = given._replace(candidate=given.candidate[:, 0])
    head = np.einsum("bd,d->b", given.user, weights.user[0])
    head += np.einsum("bd,de,be->b", given.user, weights.query[0], of_first.candidate)
    np.testing.assert_allclose(new(of_first), head, rtol=1e-4, atol=1e-5)
    # Every weight learns at once, or as soon as the way up has moved.
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(new(of_first))
    gradients = zip(
        new.trainable_variables, tape.gradient(total, new.trainable_variables), strict=True
    )
    still = {v.name for v, gradient in gradients if not np.any(gradient)}
    assert still == {"down:0", "down/bias:0"}


def test_what_a_task_trains():
    """A task per user has no query."""
    side = S * (2 * D * BOTTLENECK + BOTTLENECK)
    for task, heads in ((CLICK, D + 1 + D * D + D), (SPEND, D + 1)):
        new = AddedTask(task, S, D, BOTTLENECK)
        assert sum(v.shape.num_elements() for v in new.trainable_variables) == side + heads


# --- what is read of a model


def model_and_batch(architecture, targets="causal", **overrides):
    spec = make_spec(
        sequence={"max_length": 8, "window": 24, "targets": targets},
        model={"architecture": architecture, "hidden_dim": 16, "num_blocks": 2, "num_heads": 2,
               "num_experts": 2, "ffn_dim": 16, "tower_dims": [], "added_tasks": True},
        **overrides,
    )  # fmt: skip
    batch = pad(as_ragged(random_instances(spec, (9, 0, 20), (3, 2, 4)), spec), spec)
    keras.utils.set_random_seed(0)
    model = UserModel(spec, ROWS)
    model(batch)
    return model, batch


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [("bert", "causal"), ("bert", "expanded"), ("nextitnet", "causal"), ("supermoe", "causal")],
)
def test_layers_are_pooled_as_h_is_over_what_a_target_sees(architecture, targets):
    model, batch = model_and_batch(architecture, targets)
    count = tf.reduce_sum(tf.cast(batch["sequence_mask"], tf.int64), 1, keepdims=True)
    all_events = batch | {"target_position": tf.broadcast_to(count, batch["target_mask"].shape)}
    end, everywhere = at_end(model, batch), at_targets(model, all_events)
    assert end.layers.shape == (3, 3, 16)  # the input and two blocks
    np.testing.assert_array_equal(end.user, model.user_embedding(batch))
    for name in ("layers", "user"):
        for b, targets_of_b in enumerate((3, 2, 4)):
            found = getattr(everywhere, name)[b, :targets_of_b]
            expected = getattr(end, name)[b]
            np.testing.assert_allclose(
                found, np.broadcast_to(expected, found.shape), atol=1e-5, err_msg=name
            )
    # What comes after a target changes nothing of it.
    seen = at_targets(model, batch)
    position = batch["target_position"].numpy()
    later = np.arange(20) >= position[2, 0]
    items = batch["sequence_item"].numpy()
    items[2, later] = np.where(items[2, later] == 5, 6, 5)
    changed = at_targets(model, batch | {"sequence_item": tf.constant(items)})
    np.testing.assert_allclose(seen.layers[2, 0], changed.layers[2, 0], atol=1e-6)
    assert np.abs(seen.layers - changed.layers).max() > 1e-3  # other targets see it


def test_a_spec_says_what_tasks_can_be_added_to():
    with pytest.raises(SpecError, match="'added_tasks' read an encoder's layers"):
        make_spec(
            model={"architecture": "mmoe", "added_tasks": True},
            training={"pretrain": {"epochs": 0}},
        )
    with pytest.raises(SpecError, match="and heads nfm make one a channel"):
        make_spec(model={"heads": "nfm", "added_tasks": True})
    with pytest.raises(SpecError, match="task per impression"):
        make_spec(
            model={"added_tasks": True}, tasks=[{"name": "spend", "label": "spend", "per": "user"}]
        )


# --- training

PHASE = Phase(epochs=15, batch_size=32, learning_rate=0.02)


CHANNELS = [
    {"name": "item", "scope": "sequence", "kind": "id", "rows": 7, "dim": 8,
     "mask_prediction": True},
    {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
]  # fmt: skip


def forgetful_rows(num_users=512):
    """A model whose H is the same for everybody: the last normalisation has no gain. Whether item
    A was among a user's events, its layers know. The first half is for training."""
    tasks = [{"name": "click", "label": "clicked"}]
    model, _ = model_and_batch("bert", channels=CHANNELS, tasks=tasks)
    model.encoder._norm.gamma.assign(tf.zeros(16))
    spec = model.spec
    rng = np.random.default_rng(1)
    features = random_instances(spec, [6] * num_users, [1] * num_users)
    items = rng.integers(NUM_RESERVED + 1, NUM_RESERVED + 8, (num_users, 6))
    label = rng.random(num_users) < 0.5
    items[label, rng.integers(0, 6, label.sum())] = NUM_RESERVED
    for name, value in (("sequence_item", items), ("target_position", np.full((num_users, 1), 6))):
        features[name] = tf.RaggedTensor.from_tensor(value)
    before = [variable.numpy() for variable in model.variables]
    given = at_targets(model, pad(as_ragged(features, spec), spec))
    rows = Rows(
        Given(*(value[:, 0].numpy() for value in given)),
        {"click": label.astype(np.float32)},
        np.arange(num_users),
        np.arange(num_users) >= num_users // 2,
    )
    return model, before, rows


def test_learns_from_layers_what_h_forgot():
    model, before, rows = forgetful_rows()
    assert np.ptp(rows.given.user, axis=0).max() < 1e-6
    learned = evaluate(CLICK, train(CLICK, rows, 4, PHASE), rows)
    assert learned["auc"] > 0.95 and learned["targets"] == 256
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    # A head over H and the candidate alone, which say nothing of it.
    blind = rows._replace(given=rows.given._replace(layers=np.zeros_like(rows.given.layers)))
    assert evaluate(CLICK, train(CLICK, blind, 4, PHASE), blind)["auc"] < 0.65


def test_tasks_trained_together_come_out_as_trained_alone():
    """Bit for bit: the other task's labels, and the targets that only it has, leave no trace."""
    rng = np.random.default_rng(0)
    rows = Rows(
        Given(random(60, S, D), random(60, D), random(60, D)),
        {"click": rng.integers(0, 2, 60).astype(np.float32), "spend": random(60)},
        np.arange(60) // 4,
        np.zeros(60, bool),
    )
    rows.labels["click"][::3] = np.nan
    rows.labels["spend"][1::3] = np.nan
    phase = Phase(epochs=2, batch_size=16, learning_rate=0.01)
    for task in (CLICK, SPEND):
        only = rows.take(~np.isnan(rows.labels[task.name]))
        only = only._replace(labels={task.name: only.labels[task.name]})
        together, alone = (train(task, given, 2, phase).weights for given in (rows, only))
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one, other)
        assert np.ptp(together.up.numpy()) > 0


def test_what_cannot_be_trained_or_told_is_said():
    rows = Rows(
        Given(random(4, S, D), random(4, D), random(4, D)),
        {"click": np.float32([0, 1, 1, np.nan])},
        np.arange(4),
        np.array([True] * 4),
    )
    with pytest.raises(ValueError, match="'click' has no label among the training targets"):
        train(CLICK, rows, 2, PHASE)
    metrics = evaluate(CLICK, AddedTask(CLICK, S, D, 2), rows)
    assert set(metrics) == {"targets", "auc"}  # nobody has both classes: no GAUC
    assert metrics["targets"] == 3
