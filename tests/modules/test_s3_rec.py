"""S3-Rec's four objectives: each by hand, and what only they can learn."""

from __future__ import annotations

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.embeddings.table import MASK, NUM_RESERVED, PAD
from modules.features import as_ragged, pad
from modules.models.encoder import Encoded
from modules.models.pretrainer import Pretrainer
from modules.models.tables import embedding_tables
from modules.objectives.s3_rec import S3Rec, draw_segments
from tests.modules.conftest import ROWS, make_spec, random_instances
from tests.modules.fitting import fit_batch

STEP = tf.constant(0, tf.int64)
NUM_ITEMS, NUM_KINDS = ROWS["item"] - NUM_RESERVED, ROWS["kind"] - NUM_RESERVED
EVENTS = [4, 0, 9, 6, 1]
FEW = [
    {"name": "item", "scope": "sequence", "kind": "id", "rows": 7, "dim": 8,
     "mask_prediction": True},
    {"name": "kind", "scope": "sequence", "kind": "category", "dim": 4, "mask_prediction": True},
    {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
]  # fmt: skip
"""Channels enough to learn by."""


def spec_of(architecture="bert", objective="s3", epochs=1, **overrides):
    attributes = ["kind"] if overrides else ["kind", "tags"]
    named = {"s3": {"item": "item", "attributes": attributes}} if objective == "s3" else {}
    pretrain = {"objective": objective, "mask_rate": 0.3, "whole_event_share": 1.0,
                "learning_rate": 2e-2, "table_learning_rate": 1.0, "epochs": epochs}  # fmt: skip
    return make_spec(
        sequence={"max_length": 8, "window": 24, "targets": "expanded"},
        model={"architecture": architecture, "hidden_dim": 16, "num_blocks": 1, "num_heads": 2,
               "num_experts": 2, "ffn_dim": 32, "tower_dims": [8], "dropout": 0.0},
        training={"pretrain": pretrain | named},
        **overrides,
    )  # fmt: skip


def batch_of(spec, num_events, **changes):
    features = random_instances(spec, num_events, [1] * len(num_events))
    for name, rows in changes.items():
        features[name] = tf.RaggedTensor.from_tensor(rows)
    return pad(as_ragged(features, spec), spec)


class Seen:
    """An encoder that keeps what it was shown; h_o is random, H a sum of it."""

    def __init__(self):
        self.batches, self.hidden = [], []
        whole = lambda hidden, mask: tf.reduce_sum(hidden, axis=1)  # noqa: E731
        self.pooling = types.SimpleNamespace(whole=whole)

    def __call__(self, batch, training):
        shape = tf.shape(batch["sequence_mask"]) + [0, 1]
        self.batches.append({name: value.numpy() for name, value in batch.items()})
        self.hidden.append(tf.random.normal([*shape, 16]))
        return Encoded(self.hidden[-1], None, ())


@pytest.fixture
def asked():
    """An objective, the batch it was asked of, what the encoder was shown, and the answer."""
    keras.utils.set_random_seed(1)
    spec = spec_of()
    tables = embedding_tables(spec, ROWS, spec.training.pretrain)
    objective, batch, seen = S3Rec(spec, tables), batch_of(spec, EVENTS), Seen()
    objective(seen, batch, STEP)
    for weight in objective.trainable_variables:  # biases start at 0, and would hide a mistake
        weight.assign(tf.random.normal(weight.shape))
    seen.__init__()
    loss, values = objective(seen, batch, STEP)
    return types.SimpleNamespace(
        objective=objective, tables=tables, seen=seen, loss=loss, values=values,
        batch={name: value.numpy() for name, value in batch.items()},
    )  # fmt: skip


def cross_entropy(head, x, rows, targets):
    """Mean over the M rows of x of -mean_v log p(v | x), v the row's real values."""
    scores = (x @ head.query.kernel + head.query.bias) @ rows.numpy().T + head.bias
    scores = scores.numpy()[:, NUM_RESERVED:]
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    bags = [np.atleast_1d(t)[np.atleast_1d(t) >= NUM_RESERVED] - NUM_RESERVED for t in targets]
    return -np.mean([log_p[i, bag].mean() for i, bag in enumerate(bags)])


def real(values):
    return (values >= NUM_RESERVED) if values.ndim == 2 else (values >= NUM_RESERVED).any(-1)


def test_equation_10_an_items_attributes_from_its_row(asked):
    items, rows = asked.batch["sequence_item"], asked.tables["item"].rows.numpy()
    for name in ("kind", "tags"):
        attribute = asked.batch[f"sequence_{name}"]
        both = real(items) & real(attribute)
        assert 0 < both.sum() < real(items).sum()
        head = asked.objective.aap[f"sequence_{name}"]
        expected = cross_entropy(head, rows[items[both]], asked.tables[name].rows, attribute[both])
        np.testing.assert_allclose(asked.values[f"aap/sequence_{name}/loss"], expected, rtol=1e-4)


def test_equations_12_and_14_a_hidden_event_from_the_others(asked):
    shown, h = asked.seen.batches[0], asked.seen.hidden[0].numpy()[:, 1:]
    mask = asked.batch["sequence_mask"]
    hidden = shown["sequence_item"] == MASK
    assert 0 < hidden.sum() < mask.sum() and not hidden[~mask].any()
    assert np.isnan(shown["sequence_amount"][hidden]).all()
    assert (shown["sequence_tags"][hidden] <= MASK).all()
    for name in ("item", "kind", "tags"):
        was = asked.batch[f"sequence_{name}"]
        np.testing.assert_array_equal(shown[f"sequence_{name}"][~hidden], was[~hidden])
        there = hidden & real(was)
        objective = "mip" if name == "item" else "map"
        head = getattr(asked.objective, objective)[f"sequence_{name}"]
        expected = cross_entropy(head, h[there], asked.tables[name].rows, was[there])
        np.testing.assert_allclose(
            asked.values[f"{objective}/sequence_{name}/loss"], expected, rtol=1e-4
        )


def test_equation_16_a_segment_from_the_rest_against_another_users(asked):
    items, mask = asked.batch["sequence_item"], asked.batch["sequence_mask"]
    rest, own, other = (batch["sequence_item"] for batch in asked.seen.batches[1:])
    losses = []
    s, s_own, s_other = (hidden.numpy().sum(axis=1) for hidden in asked.seen.hidden[1:])
    for b, n in enumerate(EVENTS):
        inside = np.flatnonzero((rest[b] == MASK) & mask[b])
        np.testing.assert_array_equal(own[b, inside], items[b, inside])
        outside = np.setdiff1d(np.arange(n), inside)
        np.testing.assert_array_equal(rest[b, outside], items[b, outside])
        assert (own[b, outside] == MASK).all() and (other[b, outside] == MASK).all()
        assert (own[b, n:] == PAD).all() and (other[b, n:] == PAD).all()
        if n < 2 or not EVENTS[b - 1]:
            assert not len(inside)
            continue
        assert len(inside) <= n // 2
        np.testing.assert_array_equal(inside, np.arange(inside[0], inside[-1] + 1))
        before = items[b - 1, : EVENTS[b - 1]]
        runs = np.lib.stride_tricks.sliding_window_view(before, len(inside))
        assert (runs == other[b, inside]).all(axis=1).any()
        query = s[b] @ asked.objective.sp.kernel.numpy()
        losses.append(np.logaddexp(0.0, query @ (s_other[b] - s_own[b])))
    assert len(losses) == 2
    np.testing.assert_allclose(asked.values["sp/segment/loss"], np.mean(losses), rtol=1e-4)


def test_the_loss_is_the_weighted_sum(asked):
    def mean(objective, *names):
        return np.mean([asked.values[f"{objective}/{name}/loss"] for name in names])

    attributes = ("sequence_kind", "sequence_tags")
    expected = 0.2 * mean("aap", *attributes) + 1.0 * mean("mip", "sequence_item")
    expected += 1.0 * mean("map", *attributes) + 0.5 * mean("sp", "segment")
    np.testing.assert_allclose(asked.loss, expected, rtol=1e-5)


def test_segments_of_all_lengths_in_all_places():
    mask = tf.sequence_mask([7, 5, 1, 6], 8)
    drawn = [draw_segments(mask, tf.constant([0, i], tf.int64)) for i in range(300)]
    found = {(int(m.numpy()[0].argmax()), int(m.numpy()[0].sum())) for m, _ in drawn}
    assert found == {(start, n) for n in (1, 2, 3) for start in range(7 - n + 1)}
    # The row before the last has one event: so has the last's segment, and it is that one.
    assert {(int(m.numpy()[3].sum()), int(o.numpy()[3].max())) for m, o in drawn} == {(1, 0)}
    assert not any(m.numpy()[2].any() for m, _ in drawn)


KIND_OF = np.random.default_rng(5).permutation(np.arange(NUM_ITEMS) % NUM_KINDS)
"""An item's kind, which nothing but its own events tells."""


def batch_of_kinds(spec, seed, coherent):
    """Users' items are all of one kind, or of any."""
    rng = np.random.default_rng(seed)
    items = np.array([np.flatnonzero(np.equal(KIND_OF, k))[:6] for k in range(NUM_KINDS)])
    kinds = rng.integers(0, NUM_KINDS, (96, 1 if coherent else 8))
    kinds = np.broadcast_to(kinds, (96, 8))
    item = items[kinds, rng.integers(0, 6, (96, 8))]
    changes = {"sequence_item": NUM_RESERVED + item, "sequence_kind": NUM_RESERVED + kinds}
    return batch_of(spec, [8] * 96, **changes)


def pretrained(spec, batch, folder):
    keras.utils.set_random_seed(0)
    pretrainer = Pretrainer(spec, ROWS)
    pretrainer.loss(batch, STEP, training=False)
    phase = spec.training.pretrain
    fit_batch(pretrainer, lambda b, step: pretrainer.loss(b, step), batch, phase, str(folder))
    return pretrainer


def test_the_other_events_tell_a_hidden_ones_attribute_and_segment(tmp_path):
    """Judged on other users."""
    spec = spec_of(epochs=60, channels=FEW)
    pretrainer = pretrained(spec, batch_of_kinds(spec, 0, coherent=True), tmp_path)
    batch = batch_of_kinds(spec, 1, coherent=True)
    _, values = pretrainer.loss(batch, STEP, training=False)
    assert values["map/sequence_kind/metric"] > 0.9
    assert values["sp/segment/metric"] > 0.8  # one in six others is of the same kind


def test_only_aap_tells_items_attributes_to_their_rows(tmp_path):
    """Items come at random, so that nothing but the item tells its attribute: AAP learns, and an
    item's kind is found from its row by a linear map of all others' rows. Masked channels, hidden
    by events too, leave nothing of it there."""
    found = {}
    for objective, epochs in (("s3", 100), ("masked_channels", 40)):
        spec = spec_of(objective=objective, epochs=epochs, channels=FEW)
        batch = batch_of_kinds(spec, 0, coherent=False)
        pretrainer = pretrained(spec, batch, tmp_path / objective)
        if objective == "s3":
            batch = batch_of_kinds(spec, 1, coherent=False)
            _, values = pretrainer.loss(batch, STEP, training=False)
        rows = pretrainer.tables["item"].rows.numpy()[NUM_RESERVED:]
        rows = np.pad(rows, [(0, 0), (0, 1)], constant_values=1.0)
        right = []
        for i in range(NUM_ITEMS):
            others = np.arange(NUM_ITEMS) != i
            fitted = np.linalg.lstsq(rows[others], np.eye(NUM_KINDS)[KIND_OF[others]], rcond=None)
            right.append((rows[i] @ fitted[0]).argmax() == KIND_OF[i])
        found[objective] = np.mean(right)
    assert values["aap/sequence_kind/metric"] > 0.95
    assert values["map/sequence_kind/metric"] < 0.4 and values["sp/segment/metric"] < 0.7
    assert found["s3"] > 0.6 and found["masked_channels"] < 0.4


@pytest.mark.parametrize(
    "architecture",
    ["bert", "supermoe", "nextitnet"],
)
def test_every_weight_learns(architecture):
    spec = spec_of(architecture)
    batch = batch_of(spec, [9, 12, 20, 15])
    pretrainer = Pretrainer(spec, ROWS)
    pretrainer.loss(batch, STEP, training=False)
    with tf.GradientTape() as tape:
        loss, _ = pretrainer.loss(batch, STEP)
    variables = pretrainer.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert gradient is not None, variable.name
        assert np.isfinite(tf.convert_to_tensor(gradient)).all(), variable.name
