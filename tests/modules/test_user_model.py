"""Every architecture on small random instances: what its output may depend on, and learning."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.architectures import OWN_PRETRAINING
from data.spec import Model
from modules.embeddings.table import NUM_RESERVED
from modules.features import as_ragged, pad
from modules.models.architectures import ARCHITECTURES, channel_prediction
from modules.models.pretrainer import Pretrainer
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from tests.modules.conftest import (
    CASES,
    ROWS,
    make_spec,
    random_instances,
    with_architecture,
)
from tests.modules.fitting import fit_batch

EVENTS, TARGETS = [5, 0, 20, 9], [3, 2, 0, 6]
LEARNERS = (slice(0, 256), slice(256, 320))
"""Rows learned from, and rows judged by."""


@pytest.fixture(scope="module", params=CASES)
def spec(request):
    architecture, targets = request.param
    base = make_spec(sequence={"max_length": 8, "window": 24, "targets": targets})
    return with_architecture(base, architecture)


@pytest.fixture(scope="module")
def model(spec):
    """Not to be trained."""
    keras.utils.set_random_seed(1)
    return UserModel(spec, ROWS)


def padded(spec, features, **kwargs):
    return pad(as_ragged(features, spec), spec, **kwargs)


def take(features, rows):
    """Instances `rows`; flat multi-valued lists are ragged by instance, so rows can be gathered."""
    return {name: tf.gather(value, rows) for name, value in features.items()}


def serve(model, features, **kwargs):
    return {k: v.numpy() for k, v in model.serve(padded(model.spec, features, **kwargs)).items()}


def test_the_spec_may_name_just_these():
    named = typing.get_args(Model.model_fields["architecture"].annotation)
    assert set(named) == ARCHITECTURES.keys()


def test_only_channel_prediction_takes_an_objective():
    own = {
        name
        for name, architecture in ARCHITECTURES.items()
        if architecture.pretraining not in (None, channel_prediction)
    }
    assert own == OWN_PRETRAINING


def test_output_shapes(spec, model):
    features = random_instances(spec, EVENTS, TARGETS)
    answers = serve(model, features)
    assert answers["click"].shape == (4, 6)
    assert answers["grade"].shape == (4, 6, 3)
    assert answers["adult"].shape == (4,)
    assert model.user_embedding(padded(spec, features)).shape == (4, spec.model.hidden_dim)


def test_candidates_are_scored_from_an_embedding_computed_before(spec, model):
    features = random_instances(spec, EVENTS, TARGETS)
    batch = padded(spec, {n: v for n, v in features.items() if n != "target_position"})
    if not model.splits_at_user:
        with pytest.raises(ValueError, match="candidates need the user's events"):
            model.score(model.user_embedding(batch), batch)
        return
    answers = model.serve(batch)
    without_history = padded(
        spec,
        {
            name: value[:, :0] if name.startswith("sequence_") else value
            for name, value in features.items()
            if name != "target_position"
        },
    )
    scored = model.score(model.user_embedding(batch), without_history)
    assert answers.keys() == scored.keys()
    real = batch["target_mask"].numpy()
    for task in spec.tasks:
        mask = real if task.per == "impression" else slice(None)
        np.testing.assert_allclose(answers[task.name][mask], scored[task.name][mask], atol=1e-5)


def test_targets_that_see_all_are_encoded_once(spec, model):
    """Which way `expanded` takes mustn't change an answer."""
    features = random_instances(spec, EVENTS, TARGETS)
    ends = tf.ragged.constant([[n] * k for n, k in zip(EVENTS, TARGETS, strict=True)], tf.int64)
    given = padded(spec, features | {"target_position": ends})
    one_earlier = given["target_position"].numpy()
    one_earlier[0, 0] -= 1
    once = model.serve(given)["click"].numpy()
    each = model.serve(given | {"target_position": tf.constant(one_earlier)})["click"].numpy()
    real = given["target_mask"].numpy()
    assert once[0, 0] != each[0, 0]
    real[0, 0] = False
    np.testing.assert_allclose(once[real], each[real], atol=1e-5)


def test_padding_changes_nothing(spec, model):
    features = random_instances(spec, EVENTS, TARGETS)
    plain, wide = serve(model, features), serve(model, features, length_multiple=17)
    np.testing.assert_allclose(plain["click"], wide["click"][:, :6], atol=1e-5)
    np.testing.assert_allclose(plain["adult"], wide["adult"], atol=1e-5)


def test_batch_order_and_company_change_nothing(spec, model):
    features = random_instances(spec, EVENTS, TARGETS)
    together = serve(model, features)
    shuffled = serve(model, take(features, [3, 1, 0, 2]))
    np.testing.assert_allclose(together["click"][[3, 1, 0, 2]], shuffled["click"], atol=1e-5)
    for row in (0, 1, 3):
        alone = serve(model, take(features, [row]))
        k = TARGETS[row]
        np.testing.assert_allclose(together["click"][row, :k], alone["click"][0, :k], atol=1e-5)
        np.testing.assert_allclose(together["adult"][row], alone["adult"][0], atol=1e-5)


def test_a_target_depends_on_visible_events_only(spec, model):
    features = random_instances(spec, [12], [5])
    position = np.array([0, 3, 7, 11, 12])
    features["target_position"] = tf.RaggedTensor.from_row_lengths(position, [5])
    before = model(padded(spec, features))[0]["click"].numpy()
    for cut in range(12):
        changed = dict(features)
        items = features["sequence_item"].numpy()[0].copy()
        items[cut:] = NUM_RESERVED + (items[cut:] + 5) % (ROWS["item"] - NUM_RESERVED)
        changed["sequence_item"] = tf.RaggedTensor.from_row_lengths(items, [12])
        after = model(padded(spec, changed))[0]["click"].numpy()
        blind = position <= cut
        np.testing.assert_allclose(before[0, blind], after[0, blind], atol=1e-5)
        if cut == 0:  # Max pooling may hide a single event; it can't hide all of them.
            assert not np.isclose(before[0, ~blind], after[0, ~blind], atol=1e-6).any()


def test_candidates_of_one_user_do_not_see_each_other(spec, model):
    features = random_instances(spec, [9], [5])
    together = serve(model, features)["click"][0]
    # The last candidate alone: drop the first four from every target list.
    batch = padded(spec, features)
    names = [n for n in batch if n.startswith(("candidate_", "target_", "label_"))]
    alone = model.serve(batch | {n: batch[n][:, 4:] for n in names})["click"].numpy()[0]
    np.testing.assert_allclose(together[4], alone[0], atol=1e-5)


def test_a_label_column_never_reaches_its_own_tower():
    """`adult` is the context column `age`: neither its tower nor the shared encoder may use it."""
    spec = make_spec()
    keras.utils.set_random_seed(1)
    model = UserModel(spec, ROWS)
    features = random_instances(spec, [6], [2])
    other = features | {"context_age": tf.RaggedTensor.from_row_lengths([3.7], [1])}
    assert serve(model, features)["adult"] == serve(model, other)["adult"]
    assert not np.allclose(serve(model, features)["spend"], serve(model, other)["spend"])


@pytest.mark.parametrize("context", ["encoder", "heads"])
def test_h_says_of_the_context_what_the_spec_lets_it(context):
    sizes = make_spec().model.model_copy(update={"context": context})
    spec = make_spec(tasks=[{"name": "click", "label": "clicked"}])
    spec = spec.model_copy(update={"model": sizes})
    keras.utils.set_random_seed(1)
    model = UserModel(spec, ROWS)
    features = random_instances(spec, [6], [2])
    other = features | {"context_age": tf.RaggedTensor.from_row_lengths([3.7], [1])}
    one, two = (model.user_embedding(padded(spec, given)).numpy() for given in (features, other))
    assert np.allclose(one, two) == (context == "heads")
    assert not np.allclose(serve(model, features)["click"], serve(model, other)["click"])


def test_user_tasks_are_served_from_the_whole_window(spec, model):
    features = random_instances(spec, [7, 20], [1, 1])
    end = tf.RaggedTensor.from_row_lengths(np.array([7, 20]), [1, 1])
    at_target = model(padded(spec, features | {"target_position": end}))[0]["adult"][:, 0]
    np.testing.assert_allclose(serve(model, features)["adult"], at_target, atol=1e-5)


def test_every_variable_gets_a_gradient(spec, model):
    batch = padded(spec, random_instances(spec, [20, 24, 15], [8, 8, 8]))
    with tf.GradientTape() as tape:
        loss, _ = multi_task_loss(model, batch)
    for variable, gradient in zip(
        model.trainable_variables,
        tape.gradient(loss, model.trainable_variables),
        strict=True,
    ):
        assert gradient is not None, variable.name
        assert np.isfinite(tf.convert_to_tensor(gradient).numpy()).all(), variable.name


def test_no_labels_at_all_gives_a_finite_loss(spec, model):
    features = random_instances(spec, EVENTS, TARGETS)
    for task in spec.tasks:
        name = task.label_feature
        features[name] = features[name].with_flat_values(features[name].flat_values * np.nan)
    loss, _ = multi_task_loss(model, padded(spec, features))
    assert np.isfinite(loss)


def test_pre_training_needs_a_channel_to_predict():
    spec = make_spec()
    unmarked = [c.model_copy(update={"mask_prediction": False}) for c in spec.channels]
    with pytest.raises(ValueError, match="no channel has `mask_prediction: true`"):
        Pretrainer(spec.model_copy(update={"channels": tuple(unmarked)}), ROWS)


def _learner(case):
    """With targets `expanded`, CI asks SuperMoE alone."""
    architecture, targets = case.values[0]
    asked = targets == "causal" or architecture == "supermoe"
    return pytest.param(
        (architecture, targets),
        id=case.id,
        marks=case.marks if asked else [pytest.mark.exhaustive],
    )


@pytest.mark.parametrize("spec", map(_learner, CASES), indirect=True)
def test_learns_a_pattern_across_history_and_candidate(spec, tmp_path):
    """click = history and candidate are of one kind (items of one parity): needs both sides. Judged
    by other users, as the rest of a row is random and can be learned by heart."""
    spec = make_spec(
        sequence=spec.sequence.model_dump(),
        tasks=[{"name": "click", "label": "clicked"}],
        model=spec.model.model_dump() | {"dropout": 0.0},
        training={"pretrain": {"epochs": 0}},
        domain=spec.domain and spec.domain.model_dump(),
    )
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    features = random_instances(spec, [6] * 320, [4] * 320)

    def items(parity, shape):
        return NUM_RESERVED + 2 * rng.integers(0, 6, shape) + parity

    kind, offered = rng.integers(0, 2, (320, 1)), rng.integers(0, 2, (320, 4))
    label = (kind == offered).astype(np.float32)
    for name, value in {
        "sequence_item": items(kind, (320, 6)),
        "candidate_item": items(offered, (320, 4)),
        "label_click": label,
        "target_position": np.full((320, 4), 6),
    }.items():
        features[name] = tf.RaggedTensor.from_tensor(value)
    batch = padded(spec, features)
    seen, held_out = ({n: v[half] for n, v in batch.items()} for half in LEARNERS)
    model = UserModel(spec, ROWS)
    model(seen)
    # Two towers meet in a product only, which is flat where both are near zero: a slow start.
    epochs = 300 if spec.model.architecture == "two_tower" else 130
    phase = spec.training.finetune.model_copy(
        update={"epochs": epochs, "learning_rate": 1e-2, "table_learning_rate": 0.3}
    )
    fit_batch(model, lambda b, _: multi_task_loss(model, b), seen, phase, str(tmp_path))
    logits = model.serve(held_out)["click"].numpy()
    right = ((logits > 0) == (label[LEARNERS[1]] > 0.5)).mean()
    assert right > 0.95
