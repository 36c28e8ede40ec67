"""Two domains in one model: who is trained on what, CoNet, DARec and KEEP-C by hand and by
learning."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import SpecError
from modules.features import DOMAIN, HELD_OUT, as_ragged, pad, select_split
from modules.layers.cross_connections import CrossConnections
from modules.layers.gradient_reversal import reverse_gradient
from modules.models.can import can_towers
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.objectives.task_loss import task_loss
from modules.training.step import tables_of
from tests.modules.conftest import ROWS, make_spec, random_instances
from tests.modules.fitting import fit_batch

EVENTS, TARGETS = [5, 9, 20, 7], [3, 4, 5, 6]
FEW = [
    {"name": "item", "scope": "sequence", "kind": "id", "rows": 7, "dim": 8},
    {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
    {"name": "price", "scope": "candidate", "kind": "dense"},
]
"""Channels enough to learn by."""


def spec_of(architecture, domain=None, **overrides):
    sizes = {"hidden_dim": 16, "num_heads": 2, "tower_dims": [8], "dropout": 0.0}
    return make_spec(
        **{"tasks": [{"name": "click", "label": "clicked"}]}
        | overrides
        | {
            "model": sizes | {"architecture": architecture} | overrides.get("model", {}),
            "training": {"pretrain": {"epochs": 0}} | overrides.get("training", {}),
            "domain": {"channel": "item", "values": ["1"]} | (domain or {}),
        }
    )


def batch_of(spec, num_events=EVENTS, num_targets=TARGETS, **changes):
    features = random_instances(spec, num_events, num_targets)
    return pad(as_ragged(features | changes, spec), spec)


@pytest.mark.parametrize("architecture", ["can", "keep_c", "conet", "darec"])
def test_no_label_of_users_held_out_is_in_what_bilevel_trains_on(architecture):
    """Whoever adds a loss of their own to the tasks'."""
    spec = spec_of(architecture, training={"finetune": {"weighting": "bilevel"}})
    batch = batch_of(spec)
    model = UserModel(spec, ROWS)
    model.make_variables(batch)

    def total(row, held_out):
        label = batch["label_click"].numpy()
        label[row] = 1 - label[row]
        changed = {"label_click": tf.constant(label), HELD_OUT: tf.constant(held_out)}
        tf.random.set_seed(0)
        return multi_task_loss(model, batch | changed)[0].numpy()

    rest = [False, False, True, False]
    flipped = [total(row, rest) for row in (2, [])]
    assert flipped[0] == flipped[1]
    assert total(1, rest) != flipped[1]  # a label that is trained on counts


def test_only_the_domains_labels_teach_where_it_is_trained_on_alone():
    spec = spec_of("can", {"train_on": "domain"})
    features = random_instances(spec, EVENTS, TARGETS)
    of_user = tf.ragged.constant([[0] * (k - 1) + [1] for k in TARGETS], tf.int64)
    ragged = as_ragged(features | {"target_per_user": of_user}, spec)
    is_train = ragged["target_split"].flat_values == 0
    inside = (ragged[DOMAIN].flat_values == 1) | (of_user.flat_values == 1)
    for split, wanted in (("train", is_train & inside), ("eval", ~is_train)):
        kept = select_split(ragged, spec, split)
        for name in (DOMAIN, "label_click", "candidate_item"):
            np.testing.assert_array_equal(kept[name].flat_values, ragged[name].flat_values[wanted])
        batch = pad(kept, spec)
        np.testing.assert_array_equal(
            batch[DOMAIN].numpy()[batch["target_mask"]], kept[DOMAIN].flat_values == 1
        )
        assert not batch[DOMAIN].numpy()[~batch["target_mask"].numpy()].any()


def test_models_of_two_domains_need_them():
    with pytest.raises(SpecError, match="conet has a network for each domain: it needs 'domain'"):
        make_spec(model={"architecture": "conet"}, training={"pretrain": {"epochs": 0}})
    with pytest.raises(SpecError, match="darec learns from both domains: leave out 'train_on'"):
        spec_of("darec", {"train_on": "domain"})
    with pytest.raises(SpecError, match="channel 'tags' isn't a single-valued id or category"):
        spec_of("can", {"channel": "tags"})
    with pytest.raises(SpecError, match="domain: it is a target's, of a task per impression"):
        spec_of("can", tasks=[{"name": "adult", "per": "user", "label": "age"}])


# --- CoNet ---------------------------------------------------------------------------------


def crossed():
    keras.utils.set_random_seed(0)
    layer, x = CrossConnections([6, 5, 4]), tf.random.normal([2, 3, 7])
    layer(x)
    for weight in layer.weights:  # biases start at 0, and would hide a mistake
        weight.assign(tf.random.normal(weight.shape))
    return layer, x


def test_cross_connections_are_conets_equations():
    layer, x = crossed()
    h_t = h_s = x.numpy()
    for i in range(3):
        (w_t, b_t), (w_s, b_s) = (d[i].get_weights() for d in (layer.target, layer.source))
        cross = layer.cross[i - 1].get_weights()[0] if i else np.zeros_like(w_t)
        h_t, h_s = (
            np.maximum(h_t @ w_t + b_t + h_s @ cross, 0),
            np.maximum(h_s @ w_s + b_s + h_t @ cross, 0),
        )
    for found, expected in zip(layer(x), (h_t, h_s), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    expected = sum(np.abs(c.get_weights()[0]).sum() for c in layer.cross)
    np.testing.assert_allclose(layer.lasso(), expected, rtol=1e-5)


def test_without_connections_it_is_two_mlps():
    layer, x = crossed()
    for cross in layer.cross:
        cross.kernel.assign(tf.zeros_like(cross.kernel))
    for found, own in zip(layer(x), (layer.target, layer.source), strict=True):
        np.testing.assert_allclose(found, keras.Sequential(own_relu(own))(x), rtol=1e-5)


def own_relu(layers):
    return [part for dense in layers for part in (dense, keras.layers.ReLU())]


def test_the_lasso_is_part_of_conets_loss():
    batch = batch_of(spec_of("conet"))

    def loss(cross_lasso):
        keras.utils.set_random_seed(1)
        model = UserModel(spec_of("conet", model={"cross_lasso": cross_lasso}), ROWS)
        return multi_task_loss(model, batch)

    (plain, values), (sparse, _) = loss(0.0), loss(0.5)
    np.testing.assert_allclose(sparse - plain, 0.5 * values["cross/lasso"], rtol=1e-4)
    assert values["cross/lasso"] > 0


@pytest.mark.parametrize("architecture", ["conet", "darec", "keep_c"])
def test_a_targets_own_domain_answers(architecture):
    """Moving a target to the other domain changes its answer, and no other's."""
    keras.utils.set_random_seed(1)
    spec = spec_of(architecture)
    model, batch = UserModel(spec, ROWS), batch_of(spec)
    before = model(batch)[0]["click"].numpy()
    domain = batch[DOMAIN].numpy()
    domain[1, 2] = ~domain[1, 2]
    after = model(batch | {DOMAIN: tf.constant(domain)})[0]["click"].numpy()
    changed = np.zeros_like(domain)
    changed[1, 2] = True
    np.testing.assert_array_equal(before != after, changed)


@pytest.mark.exhaustive
def test_conet_learns_a_label_that_is_the_others_opposite(tmp_path):
    """Of the same features, as the one that tells the domain is hidden: no one network could."""
    accuracy = {}
    for architecture in ("conet", "shared_bottom"):
        spec = spec_of(architecture, channels=FEW)
        (train, label, _), (test, expected, _) = (opposite_batch(spec, seed) for seed in (0, 1))
        model = trained(spec, labelled(train, label) | hidden(train), tmp_path / architecture, 40)
        accuracy[architecture] = right(model, test | hidden(test), expected)
    assert accuracy["conet"] > 0.9 and accuracy["shared_bottom"] < 0.65


def opposite_batch(spec, seed):
    """A batch, its labels, which are the price's sign in one domain and the opposite in the other,
    and which targets are the sub-domain's."""
    batch, is_sub, price = shifted_batch(spec, seed)
    return batch, np.where(is_sub, price > 0, price < 0), is_sub


def hidden(batch):
    return {"candidate_item": tf.ones_like(batch["candidate_item"]) * 5}


# --- DARec ---------------------------------------------------------------------------------


def test_gradient_reversal():
    x = tf.Variable([[1.0, -2.0]])
    with tf.GradientTape() as tape:
        y = reverse_gradient(x, 0.3)
        loss = tf.reduce_sum(y**2)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_allclose(tape.gradient(loss, x), -0.3 * 2 * x.numpy(), rtol=1e-6)


def shifted_batch(spec, seed):
    """Of two kinds of targets: items of the sub-domain are 10 to 19, of the rest 20 to 29, the
    price is of both; returns also which are the sub-domain's, and the prices."""
    rng = np.random.default_rng(seed)
    shape = (64, 4)
    is_sub, price = rng.random(shape) < 0.5, rng.normal(size=shape).astype(np.float32)
    changes = {
        DOMAIN: is_sub.astype(np.int64),
        "candidate_item": np.where(is_sub, 10, 20) + rng.integers(0, 10, shape),
        "candidate_price": price,
    }
    ragged = {name: tf.RaggedTensor.from_tensor(value) for name, value in changes.items()}
    return batch_of(spec, [3] * 64, [4] * 64, **ragged), is_sub, price


def labelled(batch, label):
    return batch | {"label_click": tf.constant(label.astype(np.float32))}


def trained(spec, batch, folder, epochs):
    keras.utils.set_random_seed(2)
    model = UserModel(spec, ROWS)
    model(batch)
    phase = spec.training.finetune.model_copy(
        update={"epochs": epochs, "learning_rate": 1e-2, "table_learning_rate": 0.1}
    )
    fit_batch(model, lambda b, _: multi_task_loss(model, b), batch, phase, str(folder))
    return model


def right(model, batch, label):
    return np.mean((model.serve(batch)["click"].numpy() > 0) == label)


def representation(model, batch):
    """What the towers read, of the shared layers: float32 [targets, 16]."""
    heads = model.heads
    user, _, _ = model.at_targets(batch, model.spec.tasks, training=False)
    x = heads._inputs(user, batch, model.spec.tasks)["click"].shared
    if model.spec.model.architecture == "darec":
        shared = heads._networks(x)[0]
    else:
        shared = heads._mixer(x, ["click"])["click"]
    return shared.numpy().reshape(-1, 16)


def domain_accuracy(r, is_sub):
    """Of the best linear classifier, on rows that it wasn't fitted to."""
    x = np.pad((r - r.mean(0)) / (r.std(0) + 1e-6), [(0, 0), (0, 1)], constant_values=1.0)
    half = len(x) // 2
    target = 2.0 * is_sub.ravel() - 1
    ridge = x[:half].T @ x[:half] + np.eye(x.shape[1])
    weights = np.linalg.solve(ridge, x[:half].T @ target[:half])
    return np.mean((x[half:] @ weights > 0) == is_sub.ravel()[half:])


def test_darecs_representation_hides_the_domain_and_keeps_the_label(tmp_path):
    """The items tell the domain, and with it what the price's sign means: a shared bottom needs to
    know it, DARec's predictors have it for themselves."""
    found = {}
    for architecture in ("shared_bottom", "darec"):
        spec = spec_of(architecture, channels=FEW)
        (train, label, _), (test, expected, is_sub) = (opposite_batch(spec, s) for s in (0, 1))
        model = trained(spec, labelled(train, label), tmp_path / architecture, epochs=150)
        of_domain = domain_accuracy(representation(model, test), is_sub)
        found[architecture] = of_domain, right(model, test, expected)
    (shown, _), (unseen, learned) = found["shared_bottom"], found["darec"]
    assert shown > 0.9 and unseen < 0.7 and learned > 0.9


# --- KEEP-C --------------------------------------------------------------------------------


def test_keep_c_starts_as_can_which_the_sub_domain_trains_and_all_train_the_extraction():
    keras.utils.set_random_seed(3)
    spec = spec_of("keep_c")
    model, batch = UserModel(spec, ROWS), batch_of(spec)
    logits = model(batch)[0]["click"].numpy()
    can = UserModel(spec_of("can"), ROWS)
    can(batch)
    can.encoder.set_weights(model.encoder.get_weights())
    can.heads.set_weights(model.heads._base.get_weights())
    for name, table in can.tables.items():
        table.set_weights(model.tables[name].get_weights())
    inside = batch[DOMAIN].numpy() & batch["target_mask"].numpy()
    outside = ~batch[DOMAIN].numpy() & batch["target_mask"].numpy()
    of_can = can(batch)[0]["click"].numpy()
    np.testing.assert_array_equal(logits[inside], of_can[inside])
    assert (logits[outside] != of_can[outside]).all()

    plug_in = model.heads._plug_in
    plug_in.set_weights([tf.random.normal(w.shape) for w in plug_in.weights])
    extraction = extraction_of(model)
    base = [v for v in model.trainable_variables if all(v is not e for e in extraction)]
    assert len(tables_of(model)) == 2 * len(ROWS)
    for where, learns, stays in ((inside, base + extraction, []), (outside, extraction, base)):
        label = np.where(where, 1.0, np.nan).astype(np.float32)
        with tf.GradientTape() as tape:
            loss, _ = multi_task_loss(model, batch | {"label_click": tf.constant(label)})
        of_learning, of_staying = (
            [np.abs(tf.convert_to_tensor(g)).sum() for g in of_part]
            for of_part in tape.gradient(loss, (learns, stays))
        )
        assert not any(of_staying)
        assert np.mean(np.array(of_learning) > 0) > 0.8


def extraction_of(model):
    parts = model.heads._extraction, model.heads._encoder, *model.heads._tables.values()
    return [v for part in parts for v in part.trainable_variables]


@pytest.mark.parametrize("targets", ["causal", "expanded"])
def test_keep_cs_extraction_learns_from_all_targets_alike(targets):
    """Its gradient is that of eq. 3's loss over all of them, of every kind of task."""
    keras.utils.set_random_seed(3)
    tasks = [
        {"name": "click", "label": "clicked", "weight": 2.0},
        {"name": "grade", "label": "grade", "type": "multiclass", "classes": ["a", "b", "c"]},
        {"name": "adult", "per": "user", "label": "age"},
    ]
    sequence = {"max_length": 8, "window": 24, "targets": targets}
    spec = spec_of("keep_c", tasks=tasks, sequence=sequence)
    model, batch = UserModel(spec, ROWS), batch_of(spec)
    model(batch)
    extraction, real = extraction_of(model), batch["target_mask"]
    assert 0 < (batch[DOMAIN] & real).numpy().sum() < real.numpy().sum()
    with tf.GradientTape(persistent=True) as tape:
        total, values = multi_task_loss(model, batch)
        user, logits_of, _ = model.at_targets(batch, spec.tasks, training=True)
        logits = logits_of(user)
        losses = [
            task.weight
            * task_loss(task, logits[f"${task.name}"], batch[task.label_feature], real)[0]
            for task in spec.tasks[:2]
        ]
        expected = tf.add_n(losses)
    assert {"extraction/click/loss", "extraction/grade/loss"} <= values.keys()
    found, wanted = (tape.gradient(loss, extraction) for loss in (total, expected))
    for one, other in zip(found, wanted, strict=True):
        pair = tf.convert_to_tensor(one), tf.convert_to_tensor(other)  # tables' are sparse
        np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6)


@pytest.mark.exhaustive
def test_keep_cs_base_reads_what_only_the_super_domain_tells(tmp_path):
    """Label = a bit of the item. The sub-domain has labels of a third of the items, the
    super-domain of all; judged in the sub-domain."""
    bit = np.random.default_rng(0).permutation(np.arange(ROWS["item"]) % 2).astype(np.float32)
    item = np.random.default_rng(1).integers(3, ROWS["item"], (128, 4))
    is_sub = np.arange(128 * 4).reshape(128, 4) % 16 == 0
    item[is_sub] = item[is_sub] // 3 * 3
    accuracy = {}
    for architecture in ("keep_c", "can"):
        spec = spec_of(architecture, channels=FEW)
        changes = {DOMAIN: is_sub.astype(np.int64), "candidate_item": item}
        ragged = {name: tf.RaggedTensor.from_tensor(value) for name, value in changes.items()}
        batch = batch_of(spec, [3] * 128, [4] * 128, **ragged)
        known = is_sub if architecture == "can" else np.ones_like(is_sub)  # the base alone
        given = labelled(batch, np.where(known, bit[item], np.nan))
        model = trained(spec, given, tmp_path / architecture, epochs=150)
        test = batch | {DOMAIN: tf.ones_like(batch[DOMAIN])}
        accuracy[architecture] = right(model, test, bit[item] > 0)
    assert accuracy["keep_c"] > 0.8 and accuracy["can"] < 0.75


def test_keep_c_says_which_table_it_cant_double():
    spec = spec_of("keep_c", model={"full_softmax_rows": 10})
    with pytest.raises(ValueError, match="keep_c: table 'item' is sharded or compressed"):
        UserModel(spec, ROWS)
    assert can_towers(spec, UserModel(spec_of("can"), ROWS).tables)
