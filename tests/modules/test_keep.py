"""KEEP: target attention, co-action and the pairwise loss, against NumPy and by learning."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import SpecError
from modules.features import as_ragged, pad
from modules.layers.co_action import CoAction
from modules.layers.target_attention import TargetAttention
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.objectives.pairwise import pairwise_loss
from tests.modules.conftest import ROWS, make_spec, random_instances

B, K, L, D = 3, 2, 5, 4


@pytest.fixture
def seen():
    """Candidates, events, and which of them each candidate sees: the first one sees nothing."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    candidate, events = (rng.normal(size=(B, n, D)).astype("float32") for n in (K, L))
    visible = rng.random((B, K, L)) < 0.6
    visible[0, 0] = False
    return candidate, events, visible


def test_target_attention_is_dins_equation_3(seen):
    candidate, events, visible = seen
    layer = TargetAttention(units=3)
    y = layer(candidate, events, visible).numpy()
    for weight in layer.weights:  # biases and slopes start at 0, and would hide a mistake
        weight.assign(tf.random.normal(weight.shape))
    y = layer(candidate, events, visible).numpy()
    w = {v.name.split("target_attention/")[-1]: v.numpy() for v in layer.weights}
    for b, k in np.ndindex(B, K):
        expected = np.zeros(D)
        for e in events[b][visible[b, k]]:
            v = candidate[b, k]
            hidden = e @ w["of_event/kernel:0"] + w["of_event/bias:0"]
            hidden += v @ w["of_candidate/kernel:0"] + (e * v) @ w["of_product:0"]
            hidden = np.where(hidden > 0, hidden, hidden * w["prelu/alpha:0"].ravel())
            expected += (hidden @ w["weight/kernel:0"] + w["weight/bias:0"]) * e
        np.testing.assert_allclose(y[b, k], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y[0, 0], 0)


def test_co_action_is_an_mlp_whose_weights_are_the_candidates(seen):
    candidate, events, visible = seen
    layer = CoAction(dims=(3, 2, 2))
    y = layer(candidate, events, visible).numpy()
    w = {v.name.split("co_action/")[-1]: v.numpy() for v in layer.weights}
    for b, k in np.ndindex(B, K):
        sums = [np.zeros(2), np.zeros(2)]
        for e in events[b][visible[b, k]]:
            h = e @ w["feed/kernel:0"]
            for n, inputs in enumerate((3, 2)):
                v = candidate[b, k]
                matrix = v @ w[f"weight_{n}/kernel:0"] + w[f"weight_{n}/bias:0"]
                bias = v @ w[f"bias_{n}/kernel:0"] + w[f"bias_{n}/bias:0"]
                h = np.tanh(h @ matrix.reshape(inputs, 2) + bias)
                sums[n] += h
        np.testing.assert_allclose(y[b, k], np.concatenate(sums), rtol=1e-4, atol=1e-5)


def test_only_co_action_learns_an_xor_of_ids():
    """label = XOR of one bit of the event's id and one of the candidate's: no sum of functions of
    either id ranks it better than chance, whatever those functions are."""
    ids = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    label = ((ids[:, 0] ^ ids[:, 1]) & 1).astype("float32")[:, None]

    def accuracy(of_rows):
        keras.utils.set_random_seed(1)
        table = keras.layers.Embedding(8, 8, embeddings_initializer="normal")
        logit = keras.layers.Dense(1)
        optimizer = keras.optimizers.legacy.Adam(0.02)

        def logits():
            rows = table(ids)
            return logit(of_rows(rows[:, 1:2], rows[:, 0:1]))

        weights = None
        for _ in range(150):
            with tf.GradientTape() as tape:
                cross = tf.nn.sigmoid_cross_entropy_with_logits(label, logits())
                loss = tf.reduce_mean(cross)
            weights = weights or tape.watched_variables()
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return float(np.mean((logits().numpy() > 0) == (label > 0.5)))

    unit = CoAction()
    sees = np.ones((len(ids), 1, 1), bool)
    assert accuracy(lambda v, e: unit(v, e, sees)[:, 0]) > 0.98
    assert accuracy(lambda v, e: (v + e)[:, 0]) < 0.8
    assert accuracy(lambda v, e: tf.concat([v, e], -1)[:, 0]) < 0.8


def test_the_pairwise_loss_is_equation_2():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(3, 4)).astype("float32")
    labels = np.array([[1, 0, np.nan, 1], [1, 1, 1, 1], [0, 1, 0, 1]], "float32")
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]], bool)
    logits[2, 3] = np.nan  # padding may hold anything
    pairs = [(0, 0, 1), (0, 3, 1), (2, 1, 0), (2, 1, 2)]
    expected = np.mean([np.log1p(np.exp(-(logits[b, i] - logits[b, j]))) for b, i, j in pairs])
    given = tf.Variable(logits)
    with tf.GradientTape() as tape:
        loss = pairwise_loss(given, labels, mask)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = tape.gradient(loss, given).numpy()
    assert (gradient[0, [0, 3]] < 0).all() and gradient[0, 1] > 0
    assert (gradient[1] == 0).all() and gradient[0, 2] == 0 and gradient[2, 3] == 0


def test_no_pair_is_no_loss():
    labels = np.full((2, 3), np.nan, "float32")
    given = tf.Variable(np.ones((2, 3), "float32"))
    with tf.GradientTape() as tape:
        loss = pairwise_loss(given, labels, np.ones((2, 3), bool))
    assert loss == 0 and (tape.gradient(loss, given).numpy() == 0).all()


def test_the_hybrid_loss_is_equation_3():
    """α adds the pairs of binary tasks per impression, and of no others."""
    spec = make_spec()
    batch = pad(as_ragged(random_instances(spec, [5, 9], [6, 6]), spec), spec)

    def loss(alpha):
        finetune = {"finetune": {"pairwise_weight": alpha}}
        keras.utils.set_random_seed(3)
        return multi_task_loss(UserModel(make_spec(training=finetune), ROWS), batch)[1]

    point, hybrid = loss(0.0), loss(0.25)
    changed = {n for n in point if n.startswith("train/") and point[n] != hybrid[n]}
    assert changed == {"train/click/loss"}
    assert hybrid["train/click/loss"] > point["train/click/loss"]


def test_only_target_attention_recalls_the_candidates_own_event():
    """Label = the sign of the one event, of eight, that has the candidate's id. A mean of events
    keeps the ids and the signs, but not which belong together; judged on new users."""
    rng = np.random.default_rng(6)
    users, num_ids = 500, 16
    ids = rng.permuted(np.tile(np.arange(num_ids), (users, 1)), axis=1)[:, :8]
    signs = rng.choice([-1.0, 1.0], (users, 8, 1))
    events = np.concatenate([np.eye(num_ids)[ids], signs], -1).astype("float32")
    candidate = events[:, :1] * (np.arange(num_ids + 1) < num_ids)
    label = (signs[:, 0] > 0).astype("float32")
    sees = np.ones((users, 1, 8), bool)

    def accuracy(of_users):
        keras.utils.set_random_seed(7)
        hidden, logit = keras.layers.Dense(32, "relu"), keras.layers.Dense(1)
        optimizer = keras.optimizers.legacy.Adam(0.02)
        weights = None
        for _ in range(150):
            with tf.GradientTape() as tape:
                x = tf.concat([of_users(slice(400)), candidate[:400, 0]], -1)
                cross = tf.nn.sigmoid_cross_entropy_with_logits(label[:400], logit(hidden(x)))
                loss = tf.reduce_mean(cross)
            weights = weights or tape.watched_variables()
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        x = tf.concat([of_users(slice(400, 500)), candidate[400:, 0]], -1)
        return float(np.mean((logit(hidden(x)).numpy() > 0) == (label[400:] > 0.5)))

    attention = TargetAttention()
    assert accuracy(lambda u: attention(candidate[u], events[u], sees[u])[:, 0]) > 0.95
    assert accuracy(lambda u: tf.reduce_mean(events[u], 1)) < 0.8


def test_can_under_expanded_takes_knowledge_and_gives_none():
    can = {
        "model": {"architecture": "can"},
        "sequence": {"max_length": 8, "window": 24, "targets": "expanded"},
        "training": {"pretrain": {"epochs": 0}},
    }
    make_spec(**can, knowledge={"item": "item", "path": "vectors"})
    with pytest.raises(SpecError, match="can is extracted from under 'sequence.targets: causal'"):
        make_spec(**can, knowledge={"item": "item"})
