"""Pre-training's loss beside the tasks' (PeterRec's MTL): what it adds, and what it reaches."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.spec import SpecError
from modules.embeddings.table import rows_key
from modules.features import as_ragged, pad
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.training.input.localize import large_tables, localize
from modules.training.step import Step
from tests.modules.conftest import ROWS, make_spec, random_instances

WEIGHT = 0.5
OBJECTIVES = {
    "supermoe": "masked_channels",
    "aetn": "masked_channels",
    "mtssl": "masked_channels",
    "nextitnet": "next_event",
}


def spec_of(architecture, weight=WEIGHT, **sizes):
    return make_spec(
        model={"architecture": architecture, "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16,
               "num_blocks": 1, "dropout": 0.0} | sizes,
        training={
            "pretrain": {"epochs": 0, "objective": OBJECTIVES[architecture]},
            "finetune": {"pretraining_weight": weight},
        },
    )  # fmt: skip


def batch_of(spec, num_targets=(3, 2, 4)):
    return pad(as_ragged(random_instances(spec, (9, 0, 20), num_targets), spec), spec)


def model_of(spec, batch):
    keras.utils.set_random_seed(0)
    model = UserModel(spec, ROWS)
    model.make_variables(batch)
    return model


def gradients(model, loss_of, variables):
    with tf.GradientTape() as tape:
        loss = loss_of()
    found = tape.gradient(loss, variables, unconnected_gradients="zero")
    return loss.numpy(), [tf.convert_to_tensor(g).numpy() for g in found]


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_it_adds_its_weighted_loss_and_gradient(architecture):
    spec = spec_of(architecture)
    batch, step = batch_of(spec), tf.constant(3, tf.int64)
    model, alone = model_of(spec, batch), model_of(spec_of(architecture, 0.0), batch)
    assert alone.pretraining is None
    shared = [*alone.encoder.variables, *(t.rows for t in alone.tables.values())]
    own = [*model.encoder.variables, *(t.rows for t in model.tables.values())]
    for ours, theirs in zip(own, shared, strict=True):
        ours.assign(theirs)
    for ours, theirs in zip(model.heads.variables, alone.heads.variables, strict=True):
        ours.assign(theirs)
    joint, joint_gradients = gradients(model, lambda: multi_task_loss(model, batch, step)[0], own)
    tasks, task_gradients = gradients(alone, lambda: multi_task_loss(alone, batch, step)[0], shared)
    source, source_gradients = gradients(
        model, lambda: model.pretraining(model.encoder, batch, step)[0], own
    )
    assert source > 0
    np.testing.assert_allclose(joint, tasks + WEIGHT * source, rtol=1e-5)
    assert any(g.any() for g in task_gradients) and any(g.any() for g in source_gradients)
    for both, one, other in zip(joint_gradients, task_gradients, source_gradients, strict=True):
        np.testing.assert_allclose(both, one + WEIGHT * other, rtol=1e-3, atol=1e-5)


def test_weight_zero_is_no_part_of_the_model():
    """Not a term multiplied by zero: the same values, bit for bit, and nothing more to record."""
    spec = spec_of("supermoe", 0.0)
    without = make_spec(model=spec.model.model_dump(), training={"pretrain": {"epochs": 0}})
    batch = batch_of(spec)
    (loss, values), (expected, known) = (
        multi_task_loss(model_of(one, batch), batch) for one in (spec, without)
    )
    assert loss.numpy() == expected.numpy() and values.keys() == known.keys()


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_users_without_targets_train_the_encoder(architecture):
    spec = spec_of(architecture)
    batch = batch_of(spec, num_targets=(0, 0, 0))
    assert batch["target_mask"].shape == (3, 0)
    model = model_of(spec, batch_of(spec))
    variables = model.encoder.trainable_variables
    loss, found = gradients(model, lambda: multi_task_loss(model, batch)[0], variables)
    assert np.isfinite(loss) and loss > 0
    assert all(np.isfinite(g).all() for g in found) and any(g.any() for g in found)


def test_a_step_trains_both_objectives_large_tables_and_all():
    spec = spec_of("nextitnet", full_softmax_rows=20)  # `item` is large
    batch = batch_of(spec)
    tables = large_tables(spec, ROWS)
    localized = localize(batch, tables)
    rows = {rows_key("item"): tf.random.stateless_uniform([ROWS["item"], 8], [1, 2]) / 10}
    rows[rows_key("item")] = tf.gather(rows[rows_key("item")], localized["row_ids_item"])
    model = model_of(spec, localized | rows)
    step = Step(model, lambda b, n: multi_task_loss(model, b, n), spec.training.finetune, 1)
    before = {v.ref(): v.numpy() for v in model.trainable_variables}
    values, of_rows = step(localized | rows, tf.constant(0, tf.int64))
    assert "next/sequence_item/loss" in values and "train/click/loss" in values
    assert (of_rows["item"].numpy() != 0).any()
    for part in (model.encoder, model.heads, model.pretraining):
        assert any((v.numpy() != before[v.ref()]).any() for v in part.trainable_variables)


@pytest.mark.parametrize(
    ("architecture", "finetune", "said"),
    [
        ("mmoe", {}, "mmoe has no pre-training"),
        ("bert", {"tune": "adapters", "adapters": {"bottleneck_dim": 2}}, "needs 'tune: all'"),
    ],
)
def test_what_can_not_be_trained_jointly_is_refused(architecture, finetune, said):
    with pytest.raises(SpecError, match=said):
        make_spec(
            model={"architecture": architecture},
            training={
                "pretrain": {"epochs": 0},
                "finetune": {"pretraining_weight": 1.0} | finetune,
            },
        )


def test_next_event_needs_a_causal_encoder_here_too():
    with pytest.raises(SpecError, match="next_event' needs 'sequence.targets: causal'"):
        make_spec(
            sequence={"max_length": 8, "window": 24, "targets": "expanded"},
            training={
                "pretrain": {"epochs": 0, "objective": "next_event"},
                "finetune": {"pretraining_weight": 1.0},
            },
        )
