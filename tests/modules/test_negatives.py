"""Sampled negatives and the losses that rank above them, by hand, against NumPy and by learning."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import SpecError
from modules.embeddings.table import NUM_RESERVED
from modules.features import DOMAIN, as_ragged, pad
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.objectives.negatives import split_negatives, with_negatives
from modules.objectives.ranking import bpr_loss, softmax_loss
from tests.modules.conftest import ROWS, make_spec, random_instances
from tests.modules.fitting import fit_batch

N = 3
TASKS = [
    {"name": "click", "label": "clicked", "loss": "bpr"},
    {"name": "spend", "per": "user", "label": "spend", "type": "regression"},
]


def spec_of(loss="bpr", **overrides):
    tasks = [TASKS[0] | {"loss": loss}, TASKS[1]]
    finetune = {"negatives": {"item": "item", "count": N}}
    return make_spec(**{"tasks": tasks, "training": {"finetune": finetune}} | overrides)


def batch_of(spec, num_events=(5, 0, 20, 9), num_targets=(3, 2, 0, 6)):
    return pad(as_ragged(random_instances(spec, num_events, num_targets), spec), spec)


def step(number):
    return tf.constant(number, tf.int64)


# One user took item a over b and c, and d with no negative that counts; another one took nothing.
POSITIVE = np.array([[1.0, 5.0], [3.0, 0.0]], np.float32)
NEGATIVE = np.array([[[0.0, 2.0], [9.0, 9.0]], [[1.0, 1.0], [np.nan, 1.0]]], np.float32)
TAKEN = np.array([[True, True], [False, False]])
DRAWN = np.array([[[True, True], [False, False]], [[True, True], [False, True]]])


@pytest.mark.parametrize(
    ("loss_of", "expected", "count"),
    [
        # -log σ(1) and -log σ(-1)
        (bpr_loss, (np.log1p(np.exp(-1)) + np.log1p(np.exp(1))) / 2, 2),
        # -log of e¹ / (e¹ + e⁰ + e²)
        (softmax_loss, -np.log(np.e / (np.e + 1 + np.e**2)), 1),
    ],
)
def test_the_losses_by_hand(loss_of, expected, count):
    positive, negative = tf.Variable(POSITIVE), tf.Variable(NEGATIVE)
    with tf.GradientTape() as tape:
        loss, counted = loss_of(positive, negative, TAKEN, DRAWN)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert counted == count
    up, down = (g.numpy() for g in tape.gradient(loss, (positive, negative)))
    assert up[0, 0] < 0 and (down[0, 0] > 0).all()
    assert up[0, 1] == 0 and not up[1].any() and not down[0, 1].any() and not down[1].any()


@pytest.mark.parametrize("loss_of", [bpr_loss, softmax_loss])
def test_nothing_to_rank_is_no_loss(loss_of):
    loss, counted = loss_of(POSITIVE, np.nan_to_num(NEGATIVE), TAKEN & False, DRAWN)
    assert loss == 0 and counted == 0


def test_a_negative_is_another_item_in_the_same_place():
    spec = spec_of()
    batch = batch_of(spec)
    more = {name: value.numpy() for name, value in with_negatives(batch, spec, step(4)).items()}
    own = {name: value.numpy() for name, value in batch.items()}
    num_own = own["target_mask"].shape[1]
    of_targets = ["target_mask", "target_position", "label_click", "candidate_item"]
    assert all(more[name].shape[1] == num_own * (1 + N) for name in of_targets)
    for name in own:  # what was there stays, in its place
        its_own = more[name] if own[name].ndim == 1 else more[name][:, : own[name].shape[1]]
        np.testing.assert_array_equal(its_own, own[name])
    drawn = {
        name: more[name][:, num_own:].reshape(4, num_own, N, *more[name].shape[2:])
        for name in more
        if name.startswith(("candidate_", "target_", "label_"))
    }
    assert np.isnan(drawn["label_click"]).all() and np.isnan(drawn["label_spend"]).all()
    np.testing.assert_array_equal(
        drawn["target_position"], np.repeat(own["target_position"][..., None], N, -1)
    )
    other = drawn["candidate_item"] != own["candidate_item"][..., None]
    ranked = own["target_mask"] & (own["label_click"] == 1)
    np.testing.assert_array_equal(drawn["target_mask"], ranked[..., None] & other)
    assert drawn["target_mask"].any() and ranked.any()
    candidates = [c.feature for c in spec.scope("candidate")]
    offered = {
        tuple(own[name][b, k].tobytes() for name in candidates)
        for b, k in np.argwhere(own["target_mask"])
    }
    for place in np.argwhere(drawn["target_mask"]):
        assert tuple(drawn[name][tuple(place)].tobytes() for name in candidates) in offered


def test_a_negative_is_of_its_own_items_domain():
    spec = spec_of(domain={"channel": "item", "values": ["1"]})
    batch = batch_of(spec)
    odd = batch["candidate_item"] % 2 == 1
    more = with_negatives(batch | {DOMAIN: odd & batch["target_mask"]}, spec, step(2))
    expected = (more["candidate_item"] % 2 == 1) & more["target_mask"]
    np.testing.assert_array_equal(more[DOMAIN] & more["target_mask"], expected)
    assert {*np.unique(expected[:, odd.shape[1] :])} == {False, True}


def test_knowledge_of_the_moment_is_the_targets_own():
    finetune = {"negatives": {"item": "item", "count": N, "moment": ["kind"]}}
    knowledge = {"item": "item", "category": "kind"}
    channels = [
        {"name": "item", "scope": "sequence", "kind": "id", "rows": 7, "dim": 8,
         "mask_prediction": True},
        {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
        {"name": "kind", "scope": "candidate", "kind": "category", "dim": 4},
    ]  # fmt: skip
    spec = spec_of(training={"finetune": finetune}, knowledge=knowledge, channels=channels)
    batch = batch_of(spec)
    keys = {f"knowledge_{k}": batch[f"candidate_{c}"] for k, c in knowledge.items()}
    more = with_negatives(batch | keys, spec, step(5))
    for kind, channel in knowledge.items():
        np.testing.assert_array_equal(more[f"knowledge_{kind}"], more[f"candidate_{channel}"])
    num_own = batch["target_mask"].shape[1]
    np.testing.assert_array_equal(
        more["knowledge_category"][:, num_own:], np.repeat(keys["knowledge_category"], N, axis=1)
    )


def test_what_tells_of_the_moment_is_the_targets_own():
    finetune = {"negatives": {"item": "item", "count": N, "moment": ["tags", "price"]}}
    spec = spec_of(training={"finetune": finetune})
    batch = batch_of(spec)
    more = with_negatives(batch, spec, step(4))
    num_own = batch["target_mask"].shape[1]
    for name in ("candidate_tags", "candidate_price"):
        own = np.repeat(batch[name].numpy(), N, axis=1)
        np.testing.assert_array_equal(more[name][:, num_own:], own)
    own_item = np.repeat(batch["candidate_item"].numpy(), N, axis=1)
    assert (more["candidate_item"][:, num_own:].numpy() != own_item).any()


def test_draws_are_uniform_over_items_and_new_at_every_step():
    """One item is offered fifty times, three others once: each is drawn as often."""
    spec = spec_of(channels=CHANNELS, tasks=TASKS[:1])
    items = np.array([[NUM_RESERVED] * 50 + [4, 5, 6]])
    batch = {
        "candidate_item": tf.constant(items),
        "target_mask": tf.ones_like(items, tf.bool),
        "target_position": tf.zeros_like(items),
        "label_click": tf.ones_like(items, tf.float32),
    }
    drawn = [
        with_negatives(batch, spec, step(number))["candidate_item"].numpy()[:, 53:]
        for number in (0, 0, *range(1, 20))
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])
    counts = np.bincount(np.concatenate(drawn[1:]).ravel())[NUM_RESERVED:]
    assert len(counts) == 4
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.03)


@pytest.mark.parametrize("num_targets", [(0, 0), (1, 0)])
def test_a_batch_without_other_items_has_no_ranking_loss(num_targets):
    spec = spec_of("softmax")
    batch = batch_of(spec, (4, 6), num_targets)
    batch["label_click"] = tf.ones_like(batch["label_click"])
    loss, values = multi_task_loss(UserModel(spec, ROWS), batch)
    assert np.isfinite(loss) and values["train/click/loss"] == 0


@pytest.mark.parametrize("targets", ["causal", "expanded"])
@pytest.mark.parametrize("architecture", ["supermoe", "din"])
def test_a_tasks_loss_is_that_of_its_logits(architecture, targets):
    """Through encoders and heads of both kinds, beside a task that is no ranking one."""
    sequence = {"max_length": 8, "window": 24, "targets": targets}
    spec = spec_of(
        sequence=sequence,
        model={"architecture": architecture, "hidden_dim": 16, "dropout": 0.0},
        training={"pretrain": {"epochs": 0}, "finetune": {"negatives": {"item": "item",
                  "count": N}}},
    )  # fmt: skip
    keras.utils.set_random_seed(1)
    model = UserModel(spec, ROWS)
    batch = batch_of(spec)
    _, values = multi_task_loss(model, batch, 3)
    more = with_negatives(batch, spec, step(3))
    logits = model(more)[0]["click"]
    (o, o_drawn), (label, _), (_, real) = (
        [part.numpy() for part in split_negatives(value, N)]
        for value in (logits, more["label_click"], more["target_mask"])
    )
    margins = [o[b, k] - o_drawn[b, k, n] for b, k, n in np.argwhere(real) if label[b, k] == 1]
    np.testing.assert_allclose(
        values["train/click/loss"], np.mean(np.log1p(np.exp(-np.array(margins)))), rtol=1e-4
    )
    spend = model(batch)[0]["spend"].numpy()
    present = batch["target_mask"].numpy() & ~np.isnan(batch["label_spend"].numpy())
    squared = (spend - batch["label_spend"].numpy())[present] ** 2
    np.testing.assert_allclose(values["train/spend/loss"], squared.mean(), rtol=1e-4)


CHANNELS = [
    {"name": "item", "scope": "sequence", "kind": "id", "rows": 7, "dim": 8,
     "mask_prediction": True},
    {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
]  # fmt: skip


@pytest.mark.parametrize("loss", ["bpr", "softmax"])
def test_the_next_item_is_learned_from_positives_alone(loss, tmp_path):
    """After item i comes i + 1; no target has label 0, from which a pointwise loss learns nothing.
    Ranked among all 37 items; by chance the first is right once in 37."""
    spec = spec_of(
        loss,
        channels=CHANNELS,
        tasks=TASKS[:1],
        model={"architecture": "deepfm", "hidden_dim": 16, "dropout": 0.0},
        training={"pretrain": {"epochs": 0}, "finetune": {"negatives": {"item": "item",
                  "count": 8}}},
    )  # fmt: skip
    keras.utils.set_random_seed(2)
    num_items = ROWS["item"] - NUM_RESERVED
    first = np.arange(num_items)[:, None]
    items = NUM_RESERVED + (first + np.arange(4)) % num_items
    features = {
        "sequence_item": tf.RaggedTensor.from_tensor(items[:, :3]),
        "candidate_item": tf.RaggedTensor.from_tensor(items[:, 3:]),
        "target_position": tf.RaggedTensor.from_tensor(np.full((num_items, 1), 3)),
        "label_click": tf.RaggedTensor.from_tensor(np.ones((num_items, 1), np.float32)),
    }
    batch = pad(features, spec)
    model = UserModel(spec, ROWS)
    model(batch)
    phase = spec.training.finetune.model_copy(
        update={"epochs": 100, "learning_rate": 1e-2, "table_learning_rate": 0.3}
    )
    fit_batch(model, lambda b, n: multi_task_loss(model, b, n), batch, phase, str(tmp_path))
    every = np.tile(NUM_RESERVED + np.arange(num_items), (num_items, 1))
    asked = features | {"candidate_item": tf.RaggedTensor.from_tensor(every)}
    del asked["target_position"], asked["label_click"]
    best = model.serve(pad(asked, spec))["click"].numpy().argmax(1)
    assert (best == items[:, 3] - NUM_RESERVED).mean() > 0.8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"training": {}}, "'negatives' and tasks of 'loss: bpr' or 'loss: softmax' go together"),
        ({"tasks": TASKS[1:]}, "'negatives' and tasks of 'loss: bpr'"),
        ({"tasks": [TASKS[1] | {"loss": "bpr"}]}, "'spend': 'loss: bpr' ranks candidates"),
        ({"training": {"finetune": {"negatives": {"item": "item", "moment": ["item"]}}}},
         r"moment \['item'\]: no other channels of scope 'candidate'"),
        ({"training": {"finetune": {"negatives": {"item": "tags"}}}},
         r"negatives: item 'tags' isn't a single-valued .* those are \['item'\]"),
    ],
)  # fmt: skip
def test_a_ranking_that_can_not_be_is_refused(overrides, said):
    with pytest.raises(SpecError, match=said):
        spec_of(**overrides)
