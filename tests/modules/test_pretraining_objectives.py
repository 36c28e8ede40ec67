"""Next events (PeterRec eq. 1) and AETN's bags: what is predicted, from what, and what learns."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from modules.embeddings.table import NUM_RESERVED
from modules.features import as_ragged, pad
from modules.models.encoder import Encoded
from modules.models.pretrainer import Pretrainer
from modules.models.tables import embedding_tables
from modules.objectives.denoising_autoencoder import DenoisingAutoencoder
from modules.objectives.masked_channels import ChannelLoss
from modules.objectives.next_event import NextEventPrediction
from tests.modules.conftest import ROWS, make_spec, random_instances
from tests.modules.fitting import fit_batch

STEP = tf.constant(0, tf.int64)
SIZES = {"hidden_dim": 16, "num_blocks": 1, "num_heads": 2, "num_experts": 2, "ffn_dim": 32,
         "tower_dims": [8], "dropout": 0.0}  # fmt: skip


def spec_of(architecture, objective="masked_channels", targets="causal"):
    return make_spec(
        sequence={"max_length": 8, "window": 24, "targets": targets},
        model=SIZES | {"architecture": architecture},
        training={"pretrain": {"objective": objective, "learning_rate": 1e-2, "epochs": 60,
                               "table_learning_rate": 0.3}},
    )  # fmt: skip


def batch_of(spec, num_events, **changes):
    features = random_instances(spec, num_events, [1] * len(num_events))
    for name, rows in changes.items():
        features[name] = tf.RaggedTensor.from_tensor(rows)
    return pad(as_ragged(features, spec), spec)


class Recorder:
    """A head that keeps what it was asked."""

    def __call__(self, h_MD, targets, features, training):
        self.h, self.targets = h_MD.numpy(), targets.numpy()
        return ChannelLoss(*tf.zeros([3]))


def test_equation_1_each_event_from_the_index_before_it():
    spec = spec_of("nextitnet", "next_event")
    objective = NextEventPrediction(spec, embedding_tables(spec, ROWS, spec.training.pretrain))
    objective.heads = {name: Recorder() for name in objective.heads}
    batch = batch_of(spec, [3, 5, 1])
    hidden = np.arange(3 * 6, dtype=np.float32).reshape(3, 6, 1)  # 6·instance + index

    def encoder(given, training):
        assert given is batch
        return Encoded(tf.constant(hidden), None, ())

    objective(encoder, batch, STEP)
    items = batch["sequence_item"].numpy()
    real = [(b, j) for b, n in enumerate([3, 5, 1]) for j in range(n)]
    known = [(b, j) for b, j in real if items[b, j] >= NUM_RESERVED]
    assert 0 < len(known) < len(real)  # a missing value is no target
    head = objective.heads["sequence_item"]
    np.testing.assert_array_equal(head.targets, [items[at] for at in known])
    np.testing.assert_array_equal(head.h[:, 0], [6 * b + j for b, j in known])


@pytest.mark.parametrize("architecture", ["nextitnet", "bert", "supermoe"])
def test_nothing_leaks_from_what_is_predicted(architecture):
    """What event j is predicted from doesn't depend on events j and later, but on those before."""
    spec = spec_of(architecture, "next_event")
    keras.utils.set_random_seed(0)
    pretrainer = Pretrainer(spec, ROWS)
    rng = np.random.default_rng(0)
    values = {
        "sequence_item": rng.integers(NUM_RESERVED, ROWS["item"], (1, 10)),
        "sequence_kind": rng.integers(NUM_RESERVED, ROWS["kind"], (1, 10)),
        "sequence_amount": rng.normal(size=(1, 10)).astype(np.float32),
    }
    before = pretrainer.encoder(batch_of(spec, [10], **values)).hidden.numpy()[0, :-1]
    for j in range(10):
        other = {k: np.roll(v, 1) for k, v in values.items()}
        mixed = {k: np.concatenate([v[:, :j], other[k][:, j:]], 1) for k, v in values.items()}
        after = pretrainer.encoder(batch_of(spec, [10], **mixed)).hidden.numpy()[0, :-1]
        np.testing.assert_allclose(after[: j + 1], before[: j + 1], atol=1e-5)
        if j < 9:
            assert np.abs(after[j + 1] - before[j + 1]).max() > 1e-3


def test_an_encoder_that_sees_later_events_is_refused():
    spec = spec_of("nextitnet", targets="expanded")
    with pytest.raises(ValueError, match="`next_event` needs `sequence.targets: causal`"):
        NextEventPrediction(spec, embedding_tables(spec, ROWS, spec.training.pretrain))


def pretrained(spec, batch, folder):
    keras.utils.set_random_seed(0)
    pretrainer = Pretrainer(spec, ROWS)
    pretrainer.loss(batch, STEP, training=False)
    phase = spec.training.pretrain
    fit_batch(pretrainer, lambda b, step: pretrainer.loss(b, step), batch, phase, str(folder))
    return pretrainer


@pytest.mark.parametrize("architecture", ["nextitnet", "supermoe"])
def test_next_events_are_learned(architecture, tmp_path):
    """Items count up from a random start: all but the first of a sequence can be known, by what
    tells the newest event from those before it."""
    spec = spec_of(architecture, "next_event")
    count, length = 8, 9
    start = np.random.default_rng(0).integers(0, count, (64, 1))
    items = NUM_RESERVED + (start + np.arange(length)) % count
    batch = batch_of(spec, [length] * 64, sequence_item=items)
    pretrainer = pretrained(spec, batch, tmp_path)
    accuracy = pretrainer.loss(batch, STEP, training=False)[1]["next/sequence_item/metric"]
    assert accuracy > (length - 1 + 1 / count) / length - 0.05


def test_bags_are_cross_entropies_with_the_frequencies_of_all_unmasked_values():
    spec = spec_of("aetn")
    tables = embedding_tables(spec, ROWS, spec.training.pretrain)
    objective = DenoisingAutoencoder(spec, tables)
    missing = np.full((1, 4), NUM_RESERVED - 1)
    items = np.array([[5, 5, 7, 2], [9, 5, 9, 5]])
    batch = batch_of(spec, [4] * 3, sequence_item=np.concatenate([missing, items]))
    user = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    bags = objective.reconstruct(tf.constant(user), batch, training=False)
    assert set(bags) == {"sequence_item", "sequence_kind"}  # amount is dense
    head = objective.bags["sequence_item"]
    hidden = np.maximum(user @ objective.widen.kernel.numpy(), 0) @ objective.narrow.kernel.numpy()
    scores = hidden @ head.query.kernel.numpy() @ tables["item"].rows.numpy().T
    log_p = scores - np.log(np.exp(scores[:, NUM_RESERVED:]).sum(1, keepdims=True))
    expected = [-(2 * log_p[1, 5] + log_p[1, 7]) / 3, -(log_p[2, 9] + log_p[2, 5]) / 2]
    np.testing.assert_allclose(bags["sequence_item"].loss, np.mean(expected), rtol=1e-4)
    assert bags["sequence_item"].count == 2


def test_the_bag_is_learned_through_h(tmp_path):
    """Everyone's items are ten of one of two kinds: H has to tell which."""
    spec = spec_of("aetn", targets="expanded")
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, (64, 1))
    items = NUM_RESERVED + 10 * kind + rng.integers(0, 10, (64, 6))
    batch = batch_of(spec, [6] * 64, sequence_item=items)
    pretrainer = pretrained(spec, batch, tmp_path)
    _, values = pretrainer.loss(batch, STEP, training=False)
    # Blind to H it is log 20; with the kind known log 10, and some of the items are remembered.
    assert values["bag/sequence_item/loss"] < np.log(10) + 0.1
    h = tf.random.normal([64, 16])
    blind = pretrainer.objective.reconstruct(h, batch, training=False)
    assert blind["sequence_item"].loss > np.log(20) - 0.1


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [
        ("aetn", "masked_channels"),
        ("nextitnet", "masked_channels"),
        ("supermoe", "denoising_autoencoder"),
    ],
)
@pytest.mark.parametrize("targets", ["causal", "expanded"])
def test_every_weight_of_pre_training_learns(architecture, objective, targets):
    spec = spec_of(architecture, objective, targets)
    batch = batch_of(spec, [9, 12, 20, 15])
    pretrainer = Pretrainer(spec, ROWS)
    pretrainer.loss(batch, STEP, training=False)
    with tf.GradientTape() as tape:
        loss, values = pretrainer.loss(batch, STEP)
    assert ("bag/sequence_item/loss" in values) == (architecture != "nextitnet")
    variables = pretrainer.trainable_variables
    gradients = tape.gradient(loss, variables)
    for variable, gradient in zip(variables, gradients, strict=True):
        assert gradient is not None, variable.name
        assert np.isfinite(tf.convert_to_tensor(gradient)).all(), variable.name
