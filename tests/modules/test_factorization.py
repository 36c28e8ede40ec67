"""DeepFM, NFM, DCN: against the double sum, against each other, and what products are for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import SpecError
from modules.embeddings.table import PAD
from modules.features import as_ragged, pad
from modules.layers.factorization import bi_interaction
from modules.layers.field_embedding import FieldEmbedding
from modules.layers.tower import Tower
from modules.models.dcn import DCN
from modules.models.deepfm import DeepFM
from modules.models.nfm import NFM
from modules.models.user_model import UserModel
from tests.modules.conftest import ROWS, make_spec, random_instances

B, K, F, D = 3, 2, 5, 4
NO_PRETRAINING = {"pretrain": {"epochs": 0}}
FIELDS = np.random.default_rng(0).normal(size=(B, K, F, D)).astype(np.float32)


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def pairs_of(fields):
    """Σ_{i<j} v_i ⊙ v_j, pair by pair."""
    return sum(
        fields[..., i, :] * fields[..., j, :]
        for i, j in itertools.combinations(range(fields.shape[-2]), 2)
    )


def factorization_machine(fields, layer, bias):
    """<w, x> + Σ_{i<j} <v_i, v_j> + w_0, with a layer's linear part."""
    (kernel,) = (w.numpy() for w in layer.linear.weights)
    flat = fields.reshape(*fields.shape[:-2], -1)
    return flat @ kernel + pairs_of(fields).sum(-1, keepdims=True) + bias


def test_one_pass_over_the_fields_is_the_double_sum():
    np.testing.assert_allclose(bi_interaction(FIELDS), pairs_of(FIELDS), rtol=1e-4, atol=1e-5)
    alone = bi_interaction(FIELDS[:, :, :1])
    np.testing.assert_allclose(alone, np.zeros((B, K, D)), atol=1e-6)


def test_nfm_without_hidden_layers_and_with_a_plain_sum_is_fm():
    """He & Chua 2017, §3.2.1."""
    layer = NFM(Tower((), 1), 1)
    layer(FIELDS)
    kernel, bias = layer.deep.logits.weights
    kernel.assign(tf.ones_like(kernel))
    bias.assign([0.3])
    expected = factorization_machine(FIELDS, layer, 0.3)
    np.testing.assert_allclose(layer(FIELDS), expected, rtol=1e-4, atol=1e-5)


def test_deepfm_is_fm_plus_a_deep_part_over_the_same_vectors():
    layer = DeepFM(Tower((3,), 1), 1)
    out = layer(FIELDS)
    w1, b1, w2, b2 = (w.numpy() for w in layer.deep.weights)
    deep = np.maximum(FIELDS.reshape(B, K, -1) @ w1 + b1, 0) @ w2 + b2
    expected = factorization_machine(FIELDS, layer, 0.0) + deep
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_nfm_with_hidden_layers():
    layer = NFM(Tower((3,), 2), 2, dropout=0.5)
    out = layer(FIELDS)
    w1, b1, w2, b2 = (w.numpy() for w in layer.deep.weights)
    (linear,) = (w.numpy() for w in layer.linear.weights)
    deep = np.maximum(pairs_of(FIELDS) @ w1 + b1, 0) @ w2 + b2
    np.testing.assert_allclose(out, FIELDS.reshape(B, K, -1) @ linear + deep, rtol=1e-4, atol=1e-5)
    assert np.abs(layer(FIELDS, training=True) - out).max() > 0.01


def test_dcn_is_cross_layers_then_a_deep_part():
    layer = DCN(Tower((3,), 1), rank=2)
    layer(FIELDS)
    for weight in layer.weights:  # biases too
        weight.assign(tf.random.normal(weight.shape))
    x0 = x = FIELDS.reshape(B, K, -1)
    for cross in layer.crosses:
        (u, v, b) = (w.numpy() for w in cross.weights)
        x = x0 * (x @ u @ v + b) + x
    w1, b1, w2, b2 = (w.numpy() for w in layer.deep.weights)
    expected = np.maximum(x @ w1 + b1, 0) @ w2 + b2
    np.testing.assert_allclose(layer(FIELDS), expected, rtol=1e-3, atol=1e-3)


def test_a_field_is_a_map_of_what_its_channel_brings():
    spec = make_spec()
    batch = pad(as_ragged(random_instances(spec, [5, 9], [3, 6]), spec), spec)
    tables = UserModel(spec, ROWS).tables
    layer = FieldEmbedding(spec.scope("candidate"), tables, D)
    names = [channel.name for channel in layer.channels]
    fields = dict(zip(names, tf.unstack(layer(batch), axis=-2), strict=True))
    maps = {
        channel.name: weight.numpy()[place]
        for group, weight in zip(layer._blocks.groups, layer._maps_CWD, strict=True)
        for place, channel in enumerate(group)
    }
    rows = {name: np.where(np.arange(n)[:, None] == PAD, 0, tables[name].rows)
            for name, n in ROWS.items()}  # fmt: skip
    tags = batch["candidate_tags"].numpy()
    count = np.maximum((tags != PAD).sum(-1, keepdims=True), 1)
    price = batch["candidate_price"].numpy()
    brought = {
        "item": rows["item"][batch["candidate_item"].numpy()],
        "tags": rows["tags"][tags].sum(-2) / count,
        "price": np.stack([np.nan_to_num(price), np.isnan(price)], -1),
    }
    assert fields.keys() == brought.keys()
    for name, x in brought.items():
        np.testing.assert_allclose(fields[name], x @ maps[name], atol=1e-5)


@pytest.mark.parametrize("architecture", ["deepfm", "nfm", "dcn"])
def test_only_a_product_of_fields_learns_an_xor_of_ids(architecture):
    """label = XOR of a bit of either id, in vectors too narrow for a table of pairs: no sum of
    functions of one id each ranks it, whatever those functions are."""
    ids = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    label = ((ids[:, 0] ^ ids[:, 1]) & 1).astype("float32")[:, None]

    def accuracy(logits_of):
        table = keras.layers.Embedding(8, D, embeddings_initializer="normal")
        optimizer = keras.optimizers.legacy.Adam(0.05)
        weights = None
        for _ in range(120):
            with tf.GradientTape() as tape:
                logits = logits_of(table(ids)[:, tf.newaxis])[:, 0]
                loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, logits))
            weights = weights or tape.watched_variables()
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return float(np.mean((logits.numpy() > 0) == (label > 0.5)))

    # Deep parts without hidden layers: what is learned, products have learned.
    layer = {
        "deepfm": lambda: DeepFM(Tower((), 1), 1),
        "nfm": lambda: NFM(Tower((), 1), 1),
        "dcn": lambda: DCN(Tower((), 1), rank=D),
    }[architecture]()
    linear = keras.layers.Dense(1)
    assert accuracy(layer) > 0.98
    assert accuracy(lambda fields: linear(tf.reshape(fields, [64, 1, 2 * D]))) < 0.8


@pytest.mark.parametrize("architecture", ["deepfm", "nfm", "dcn"])
def test_a_label_column_is_no_field_of_its_own_task(architecture):
    """`adult` is the context column `age`, which `spend` may see."""
    spec = make_spec(
        model={"architecture": architecture, "hidden_dim": 16}, training=NO_PRETRAINING
    )
    model = UserModel(spec, ROWS)
    features = random_instances(spec, [6], [2])
    other = features | {"context_age": tf.RaggedTensor.from_row_lengths([3.7], [1])}
    one, two = (model.serve(pad(as_ragged(given, spec), spec)) for given in (features, other))
    np.testing.assert_array_equal(one["adult"], two["adult"])
    assert not np.allclose(one["spend"], two["spend"])


@pytest.mark.parametrize("heads", ["deepfm", "nfm", "dcn"])
def test_factorized_heads_show_no_layer_to_extract(heads):
    with pytest.raises(SpecError, match=f"knowledge: {heads} shows no hidden layer"):
        make_spec(model={"architecture": "supermoe", "heads": heads}, knowledge={"item": "item"})
