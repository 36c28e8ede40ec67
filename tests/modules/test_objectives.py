"""Masked channel prediction (eq. 1-2), task losses (eq. 3) and their sum (eq. 9)."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.channels import CategoryChannel, DenseChannel, Dynamic, IdChannel
from data.spec import Task
from modules.embeddings.compressed import MultiHashTable
from modules.embeddings.dynamic import DynamicTable
from modules.embeddings.table import MASK, MISSING, PAD, EmbeddingTable
from modules.objectives import masked_channels as mcp
from modules.objectives.task_loss import task_loss, weighted_total

D = 6
ITEM = IdChannel(name="item", scope="sequence", kind="id", mask_prediction=True)
TAG = CategoryChannel(
    name="tag", scope="sequence", kind="category", multi_valued=True, mask_prediction=True
)
AMOUNT = DenseChannel(name="amount", scope="sequence", kind="dense", mask_prediction=True)
CHANNELS = (ITEM, TAG, AMOUNT)
SEED = tf.constant([3, 4])


def make_features(batch=40, length=50, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(0, length + 1, batch)[:, None]
    amount = rng.normal(size=(batch, length)).astype("float32")
    amount[rng.random((batch, length)) < 0.2] = np.nan
    tag = rng.integers(3, 9, (batch, length, 3))
    tag[np.arange(3) >= rng.integers(0, 4, (batch, length, 1))] = PAD
    item = rng.integers(MISSING, 12, (batch, length))
    features = {"sequence_item": item, "sequence_tag": tag, "sequence_amount": amount}
    features["sequence_other"] = item
    return {k: tf.constant(v) for k, v in features.items()}, tf.constant(mask)


@pytest.fixture
def masked():
    features, mask = make_features()
    return features, mask, *mcp.mask_channels(features, CHANNELS, mask, 0.3, SEED)


def test_only_present_values_are_masked_and_nothing_else_changes(masked):
    features, mask, out, positions = masked
    item, tag, amount = (features[f"sequence_{n}"].numpy() for n in ("item", "tag", "amount"))
    present = {
        "sequence_item": item > MISSING,
        "sequence_tag": (tag > MISSING).any(-1),
        "sequence_amount": ~np.isnan(amount),
    }
    for name, position in positions.items():
        position = position.numpy()
        assert position.any() and not position[~(present[name] & mask.numpy())].any()
        untouched = ~position
        np.testing.assert_array_equal(
            out[name].numpy()[untouched], features[name].numpy()[untouched]
        )
    assert (out["sequence_item"].numpy()[positions["sequence_item"]] == MASK).all()
    np.testing.assert_array_equal(
        np.unique(out["sequence_tag"].numpy()[positions["sequence_tag"]], axis=0), [[MASK, 0, 0]]
    )
    assert np.isnan(out["sequence_amount"].numpy()[positions["sequence_amount"]]).all()
    assert out["sequence_other"] is features["sequence_other"]
    assert out.keys() == features.keys() and positions.keys() == present.keys()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rate_holds_per_channel_and_the_share_couples_them(share):
    shape = (300, 100)
    features = {
        "sequence_item": tf.fill(shape, 5),
        "sequence_tag": tf.fill((*shape, 2), 5),
        "sequence_amount": tf.ones(shape),
    }
    mask = tf.ones(shape, tf.bool)
    _, positions = mcp.mask_channels(features, CHANNELS, mask, 0.2, SEED, whole_event_share=share)
    chosen = np.stack([p.numpy() for p in positions.values()])
    np.testing.assert_allclose(chosen.mean(axis=(1, 2)), 0.2, atol=0.01)
    together = 0.2 * share
    alone = (0.2 - together) / (1 - together)
    np.testing.assert_allclose(
        chosen.all(axis=0).mean(), together + (1 - together) * alone**3, atol=0.01
    )


def test_same_seed_same_positions(masked):
    features, mask, _, positions = masked
    again = mcp.mask_channels(features, CHANNELS, mask, 0.3, SEED)[1]
    other = mcp.mask_channels(features, CHANNELS, mask, 0.3, tf.cast(SEED + 1, tf.int64))[1]
    for name, position in positions.items():
        np.testing.assert_array_equal(position, again[name])
        assert (position != other[name]).numpy().any()


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dense(layer, x):
    return x @ layer.kernel.numpy() + layer.bias.numpy()


def make_head(kind, num_rows=12, batch=7):
    keras.utils.set_random_seed(1)
    table = EmbeddingTable(num_rows, 4, "t", init_scale=1.0)
    head = kind(table)
    h = np.random.default_rng(1).normal(size=(batch, D)).astype("float32")
    return head, table, h


def test_equations_1_and_2_full_softmax():
    head, table, h = make_head(mcp.FullSoftmaxHead)
    head.bias.assign(np.linspace(-1, 1, 12).astype("float32"))
    targets = np.array([3, 4, 5, 11, 3, 6, 7])
    out = head(h, tf.constant(targets))
    scores = dense(head.query, h) @ table.rows.numpy().T + head.bias.numpy()
    p = softmax(scores[:, 3:])  # reserved rows can't be predicted
    at_target = p[np.arange(7), targets - 3]
    np.testing.assert_allclose(out.loss, -np.log(at_target.prod()) / 7, rtol=1e-5)
    np.testing.assert_allclose(out.metric, (p.argmax(1) == targets - 3).mean())
    assert out.count.numpy() == 7


BAGS = np.array([[3, 4, 0], [5, 0, 0], [11, 3, 4], [6, 0, 0], [7, 8, 0], [4, 0, 0], [9, 10, 11]])


def test_a_bag_is_predicted_as_a_uniform_distribution():
    head, table, h = make_head(mcp.FullSoftmaxHead)
    out = head(h, tf.constant(BAGS))
    p = softmax((dense(head.query, h) @ table.rows.numpy().T)[:, 3:])
    log_p = [np.log(p[i, bag[bag > 0] - 3]).mean() for i, bag in enumerate(BAGS)]
    np.testing.assert_allclose(out.loss, -np.mean(log_p), rtol=1e-5)
    np.testing.assert_allclose(
        out.metric, np.mean([p[i].argmax() + 3 in bag for i, bag in enumerate(BAGS)])
    )


@pytest.mark.parametrize("targets", [BAGS, BAGS[:, 0]])
@pytest.mark.parametrize("training", [False, True])
def test_sampled_softmax_over_the_batch_with_log_q(targets, training):
    head, table, h = make_head(mcp.SampledSoftmaxHead)
    counts = np.arange(1, 13) * 5
    head.counts.assign(counts)
    head.total.assign(counts.sum())
    out = head(h, tf.constant(targets), training=training)

    values, times = np.unique(targets[targets > 0], return_counts=True)
    if training:
        np.add.at(counts, values, times)
    np.testing.assert_array_equal(head.counts, counts)
    assert head.total.numpy() == counts.sum()
    q = counts[values] / counts.sum()
    scores = dense(head.query, h) @ table.rows.numpy()[values].T
    p = softmax(scores - np.log(1 - (1 - q) ** times.sum()))
    bags = targets.reshape(7, -1)
    log_p = [np.log(p[i, np.isin(values, bag)]).mean() for i, bag in enumerate(bags)]
    np.testing.assert_allclose(out.loss, -np.mean(log_p), rtol=1e-4)


def dynamic_table():
    rows = DynamicTable(4, "item", Dynamic(capacity=8, tail_rows=30), init_scale=1.0)
    return EmbeddingTable(41, 4, "item", large=True, dynamic_rows=rows)


def compressed_table():
    return MultiHashTable(2**60, 4, "item", private_rows=4, shared_rows=40, init_scale=1.0)


@pytest.mark.parametrize("make_table", [dynamic_table, compressed_table])
def test_ids_far_beyond_the_stored_rows_are_predicted(make_table):
    table = make_table()
    head = mcp.build_heads([ITEM], {"item": table})["sequence_item"]
    assert head.counts.shape[0] <= 2**20
    ids = np.array([3, 2**50 + 1, 2**50 + 2, 3, 2**55])
    h = tf.constant(np.random.default_rng(0).normal(size=(5, D)).astype("float32"))
    with tf.GradientTape() as tape:
        out = head(h, tf.constant(ids), training=False)
    assert tape.gradient(out.loss, head.query.kernel) is not None
    # Nothing is counted yet, so that logQ is the same for all.
    values = np.unique(ids)
    scores = dense(head.query, h) @ table.lookup(tf.constant(values)).numpy().T
    p = softmax(np.asarray(scores))[np.arange(5), np.searchsorted(values, ids)]
    np.testing.assert_allclose(out.loss, -np.mean(np.log(p)), rtol=1e-4)
    total = int(head.total)
    head(h, tf.constant(ids), training=True)
    assert int(head.total) == total + 5
    assert sorted(head.counts.numpy()[head.counts.numpy() > 1]) == [2, 2, 2, 3]


def test_log_q_undoes_the_popularity_of_in_batch_negatives():
    """Trained on Zipf draws without context, scores must become log-probabilities.

    Uncorrected, every candidate of a batch would have to be equally likely given popularity,
    and the scores would be too flat.
    """
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    p = 1 / np.arange(1, 31)
    p /= p.sum()
    table = EmbeddingTable(33, 8, "t", init_scale=0.5)
    head = mcp.SampledSoftmaxHead(table)
    optimizer = keras.optimizers.Adam(0.02)
    h = tf.ones([16, 1])
    head(h, tf.fill([16], 3))
    variables = [table.rows, *head.trainable_variables]

    @tf.function
    def step(targets):
        with tf.GradientTape() as tape:
            loss = head(h, targets, training=True).loss
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    for _ in range(600):
        step(tf.constant(3 + rng.choice(30, 16, p=p)))
    scores = tf.linalg.matvec(table.rows, head.query(h)[0]).numpy()[3:]
    slope = np.polyfit(np.log(p), scores, 1)[0]
    assert 0.75 < slope < 1.25, slope


def test_dense_head_is_huber():
    keras.utils.set_random_seed(0)
    head = mcp.DenseChannelHead()
    h = np.random.default_rng(0).normal(size=(5, D)).astype("float32")
    targets = np.array([0.0, 5.0, -4.0, 0.3, 1.0], "float32")
    out = head(h, tf.constant(targets))
    error = np.abs(dense(head.value, h)[:, 0] - targets)
    huber = np.where(error <= 1, error**2 / 2, error - 0.5)
    np.testing.assert_allclose(out.loss, huber.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metric, error.mean(), rtol=1e-5)


def make_heads(large):
    tables = {
        "item": EmbeddingTable(12, 4, "item", large=large),
        "tag": EmbeddingTable(9, 3, "tag", large=large),
    }
    return tables, mcp.build_heads(CHANNELS, tables)


@pytest.mark.parametrize("large, kind", [(0, mcp.FullSoftmaxHead), (1, mcp.SampledSoftmaxHead)])
def test_mcp_loss_reads_masked_positions_only(masked, large, kind):
    features, _, _, positions = masked
    tables, heads = make_heads(large)
    assert isinstance(heads["sequence_item"], kind)
    h = tf.random.stateless_normal([40, 50, D], [1, 2])
    anywhere = np.logical_or.reduce([p.numpy() for p in positions.values()])
    with tf.GradientTape() as tape:
        tape.watch(h)
        total, parts = mcp.mcp_loss(heads, h, features, positions)
    np.testing.assert_allclose(total, np.mean([p.loss for p in parts.values()]), rtol=1e-6)
    for name, part in parts.items():
        assert part.count.numpy() == positions[name].numpy().sum()
    gradient = tape.gradient(total, h).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient.any(-1), anywhere)
    elsewhere = tf.where(anywhere[..., None], h, 1e6)
    np.testing.assert_allclose(mcp.mcp_loss(heads, elsewhere, features, positions)[0], total)


@pytest.mark.parametrize("large", [False, True])
def test_nothing_masked_is_zero_without_nan(large):
    features, mask = make_features(4, 5)
    tables, heads = make_heads(large)
    positions = {c.feature: tf.zeros_like(mask) for c in CHANNELS}
    h = tf.ones([4, 5, D])
    with tf.GradientTape() as tape:
        tape.watch(h)
        total, _ = mcp.mcp_loss(heads, h, features, positions, training=True)
    weights = [w for head in heads.values() for w in head.trainable_variables]
    assert total.numpy() == 0
    assert not np.any(tape.gradient(total, h))
    assert len(weights) >= 6


@pytest.mark.parametrize("large", [False, True])
def test_mcp_in_a_graph_with_unknown_dimensions_and_half_precision(large):
    _, heads = make_heads(large)
    features, mask = make_features(6, 7)
    specs = {k: tf.TensorSpec([None] * v.shape.rank, v.dtype) for k, v in features.items()}
    h = tf.random.stateless_normal([6, 7, D], [1, 2], dtype=tf.float16)

    @tf.function(
        input_signature=[
            specs,
            tf.TensorSpec([None, None], tf.bool),
            tf.TensorSpec([None, None, D], tf.float16),
        ]
    )
    def loss(features, mask, h):
        _, positions = mcp.mask_channels(features, CHANNELS, mask, 0.5, SEED, 0.3)
        return mcp.mcp_loss(heads, h, features, positions)[0]

    _, positions = mcp.mask_channels(features, CHANNELS, mask, 0.5, SEED, 0.3)
    eager = mcp.mcp_loss(heads, h, features, positions)[0]
    out = loss(features, mask, h)
    assert out.dtype == tf.float32
    np.testing.assert_allclose(out, eager, rtol=1e-5)


def task(kind, **kwargs):
    return Task(name="t", label="y", type=kind, **kwargs)


LABELS = np.array([[1, 0, np.nan, 1], [np.nan, 0, 1, 0]], "float32")
TARGETS = np.array([[1, 1, 1, 0], [1, 1, 1, 0]], bool)
LABELLED = TARGETS & ~np.isnan(LABELS)


def test_equation_3_binary():
    logits = np.random.default_rng(0).normal(size=(2, 4)).astype("float32") * 3
    loss, count = task_loss(task("binary"), logits, LABELS, TARGETS)
    p = 1 / (1 + np.exp(-logits[LABELLED]))
    y = LABELS[LABELLED]
    np.testing.assert_allclose(loss, -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), rtol=1e-5)
    assert count.numpy() == 4


def test_equation_3_multiclass():
    logits = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    labels = LABELS * 2
    loss, _ = task_loss(task("multiclass", classes=("a", "b", "c")), logits, labels, TARGETS)
    p = softmax(logits[LABELLED])[np.arange(4), labels[LABELLED].astype(int)]
    np.testing.assert_allclose(loss, -np.mean(np.log(p)), rtol=1e-5)


def test_equation_3_regression():
    logits = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    loss, _ = task_loss(task("regression"), logits, LABELS * 7, TARGETS)
    np.testing.assert_allclose(
        loss, np.mean((logits[LABELLED] - 7 * LABELS[LABELLED]) ** 2), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("labelled", [True, False])
def test_unlabelled_targets_have_no_gradient_whatever_stands_there(kind, labelled):
    classes = ("a", "b", "c") if kind == "multiclass" else None
    shape = (2, 4, 3) if classes else (2, 4)
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    present = LABELLED if labelled else np.zeros_like(LABELLED)
    values[~present] = np.nan
    logits = tf.constant(values)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss, count = task_loss(task(kind, classes=classes), logits, LABELS, present)
    gradient = tape.gradient(loss, logits).numpy().reshape(2, 4, -1)
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient.any(-1), present)
    assert (count.numpy(), loss.numpy() > 0) == ((4, True) if labelled else (0, False))


def test_equation_9():
    losses = {"a": tf.constant(2.0), "b": tf.constant(3.0)}
    assert weighted_total(losses, {"a": 0.5, "b": 10.0}).numpy() == 31
    with pytest.raises(ValueError, match="one λ a task"):
        weighted_total(losses, {"a": 0.5})
