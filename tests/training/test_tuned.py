"""What fine-tuning trains, what it leaves bit for bit, and what adapters learn that heads can't."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.architectures import LAYERED
from modules.embeddings.local_tables import LocalTables
from modules.embeddings.table import NUM_RESERVED, ids_key, rows_key
from modules.features import as_ragged, pad
from modules.metrics.auc import auc
from modules.models.user_model import UserModel
from modules.objectives.multi_task import multi_task_loss
from modules.training.input.localize import large_tables, localize
from modules.training.step import Step, split_variables
from modules.training.tuned import freeze, tuned_share
from tests.modules.conftest import ROWS, make_spec, random_instances
from tests.modules.fitting import fit_batch

LARGE_FROM = 20  # `item` is large, all other tables are small
TUNES = ("all", "adapters", "classifier", "last_1", "last_2")


def spec_of(architecture, tune, insertion=None, **overrides):
    """`city` is read by heads only: one task mustn't see it, so the encoder doesn't."""
    finetune = {"tune": tune, "table_learning_rate": 0.1, "learning_rate": 1e-2}
    if tune == "adapters":
        finetune["adapters"] = {"bottleneck_dim": 2}
        finetune["adapters"] |= {"insertion": insertion} if insertion else {}
    sizes = {"hidden_dim": 16, "num_heads": 2, "num_experts": 2, "ffn_dim": 16, "tower_dims": [8]}
    sizes |= {"architecture": architecture, "full_softmax_rows": LARGE_FROM}
    tasks = [{"name": "click", "label": "clicked", "exclude": ["city"]}]
    tasks += [{"name": "spend", "per": "user", "label": "spend", "type": "regression"}]
    given = {
        "model": sizes,
        "tasks": tasks,
        "training": {"finetune": finetune},
    } | overrides
    return make_spec(**given)


def batch_of(spec, num_events=(9, 0, 20), num_targets=(3, 2, 4)):
    return pad(as_ragged(random_instances(spec, num_events, num_targets), spec), spec)


def frozen_model(spec, batch):
    keras.utils.set_random_seed(0)
    model = UserModel(spec, ROWS)
    model(batch)
    freeze(model)
    return model


def train(model, batch, folder, epochs):
    spec = model.spec
    phase = spec.training.finetune.model_copy(update={"epochs": epochs})
    loss = lambda b, _: multi_task_loss(model, b)  # noqa: E731
    fit_batch(model, loss, batch, phase, str(folder), features=large_tables(spec, ROWS))


def values(model):
    """Of every variable, large tables' shards too: its bytes."""
    return {variable.ref(): variable.numpy().tobytes() for variable in model.variables}


def refs(*parts):
    return {variable.ref() for part in parts for variable in part.variables}


@pytest.mark.parametrize("architecture", ["bert", "nextitnet"])
@pytest.mark.parametrize("tune", TUNES)
def test_what_is_frozen_stays_bit_for_bit(architecture, tune, tmp_path):
    spec = spec_of(architecture, tune)
    batch = batch_of(spec)
    model = frozen_model(spec, batch)
    encoder, tables = model.encoder, model.tables
    expected = (
        refs(model.heads, tables["city"])
        | {
            "all": lambda: refs(encoder, *tables.values()),
            "adapters": lambda: refs(*model.patches),
            "classifier": set,
            "last_1": lambda: refs(*encoder.stages[-1]),
            "last_2": lambda: refs(*encoder.stages[-1], *encoder.stages[-2]),
        }[tune]()
    )
    before = values(model)
    # Twice: an adapter's way down has no gradient while its way up is zero.
    train(model, batch, tmp_path, epochs=2)
    moved = {ref for ref, value in values(model).items() if value != before[ref]}
    assert moved == expected
    assert len(expected) < len(before) or tune == "all"


def test_context_that_heads_alone_read_is_trained_with_them(tmp_path):
    spec = spec_of("nextitnet", "adapters")
    all_see_city = [task.model_copy(update={"exclude": ()}) for task in spec.tasks]
    spec = spec.model_copy(update={"tasks": tuple(all_see_city)})
    batch = batch_of(spec)
    model = frozen_model(spec, batch)
    assert not model.tables["city"].trainable
    sizes = spec.model.model_copy(update={"context": "heads"})
    model = frozen_model(spec.model_copy(update={"model": sizes}), batch)
    before = values(model)
    train(model, batch, tmp_path, epochs=2)
    moved = {ref for ref, value in values(model).items() if value != before[ref]}
    assert moved == refs(model.heads, model.tables["city"], *model.patches)


@pytest.mark.parametrize("tune", TUNES)
def test_what_is_frozen_has_no_gradient_and_no_optimizer_state(tune):
    spec = spec_of("nextitnet", tune)
    model = frozen_model(spec, batch_of(spec))
    step = Step(model, lambda batch, _: multi_task_loss(model, batch), spec.training.finetune, 1)
    tables, dense = split_variables(model)
    assert len(step.dense_optimizer.first_moments) == len(dense)
    small = {t.name for t in model.tables.values() if not t.large and t.trainable}
    assert len(tables) == len(small) == (3 if tune == "all" else 1)
    slots = [v for v in step.table_optimizer.variables if "row_accumulator" in v.name]
    assert len(slots) == len(tables)
    local = LocalTables(step.large)
    # The rows of the one large table; with them its state and touched flags.
    assert len(local.variables) == (3 if tune == "all" else 1)
    batch = localize(batch_of(spec), large_tables(spec, ROWS))
    given = local.gather({"item": batch[ids_key("item")]})
    _, of_rows = step(batch | {rows_key("item"): given["item"]}, tf.constant(0, tf.int64))
    assert set(of_rows) == ({"item"} if tune == "all" else set())


def test_the_share_that_is_tuned():
    """Counted by hand from the sizes."""
    spec = spec_of("nextitnet", "adapters")
    model = frozen_model(spec, batch_of(spec))
    num_blocks, hidden = spec.model.num_blocks, spec.model.hidden_dim
    adapters = 2 * num_blocks * (2 * 2 * hidden + 2 + hidden)
    heads = sum(v.shape.num_elements() for v in model.heads.trainable_variables)
    cities = ROWS["city"] * 4
    convolutions = 2 * num_blocks * (3 * hidden * hidden + hidden + 2 * hidden)
    channels = 8 + 4 + 4 + 2  # item, kind, tags, amount with its absence
    projection = (channels + 1) * hidden + 2 * hidden
    positions = (spec.sequence.window + 1) * hidden  # and the leading token
    # The context that all may see, `age`, has a projection too.
    context = (2 + 1) * hidden + 2 * hidden
    tables = ROWS["item"] * 8 + ROWS["kind"] * 4 + ROWS["tags"] * 4
    everything = heads + cities + convolutions + projection + positions + context + tables
    assert tuned_share(model) == pytest.approx((adapters + heads + cities) / everything)
    assert tuned_share(frozen_model(spec_of("nextitnet", "all"), batch_of(spec))) == 1.0


@pytest.mark.parametrize("architecture", sorted(LAYERED))
@pytest.mark.parametrize("targets", ["causal", "expanded"])
def test_new_adapters_leave_every_answer_as_it_was(architecture, targets):
    sequence = {"max_length": 8, "window": 24, "targets": targets}
    batch = batch_of(spec_of(architecture, "all", sequence=sequence))
    plain = UserModel(spec_of(architecture, "all", sequence=sequence), ROWS)
    patched = UserModel(spec_of(architecture, "adapters", sequence=sequence), ROWS)
    for model in (plain, patched):
        model(batch)
    for old, new in zip(of_backbone(plain), of_backbone(patched), strict=True):
        new.assign(old)
    for old, new in zip(answers(plain, batch), answers(patched, batch), strict=True):
        np.testing.assert_array_equal(new, old)


def of_backbone(model):
    parts = [model.encoder, model.heads, *model.tables.values()]
    return [variable for part in parts for variable in part.variables]


def answers(model, batch):
    return [*model.serve(batch).values(), model.user_embedding(batch)]


CHANNELS = [
    {"name": "item", "scope": "sequence", "kind": "id", "rows": 7, "dim": 8,
     "mask_prediction": True},
    {"name": "item", "scope": "candidate", "kind": "id", "table": "item"},
]  # fmt: skip


def forgetful(tune, insertion=None):
    """NextItNet whose H is the newest event's alone, whatever its first convolution saw.

    The second convolution hands that on in the first half of its channels, as pairs of x and -x
    (so that it doesn't move the mean), and the normalisation's gain is zero there. Behind it only
    constants come from the other half. What a patch puts into that half gets through.
    """
    spec = spec_of(
        "nextitnet",
        tune,
        insertion,
        channels=CHANNELS,
        tasks=[{"name": "click", "label": "clicked"}],
        model={"architecture": "nextitnet", "hidden_dim": 16, "num_blocks": 1, "dropout": 0.0,
               "tower_dims": [], "dilations": [1]},
    )  # fmt: skip
    rng = np.random.default_rng(5)
    features = random_instances(spec, [6] * 128, [1] * 128)
    items = NUM_RESERVED + rng.integers(0, 2, (128, 6))
    label = items[:, -2] == NUM_RESERVED
    for name, value in {
        "sequence_item": items,
        "candidate_item": np.full((128, 1), NUM_RESERVED),
        "label_click": label[:, None].astype(np.float32),
        "target_position": np.full((128, 1), 6),
    }.items():
        features[name] = tf.RaggedTensor.from_tensor(value)
    batch = pad(as_ragged(features, spec), spec)
    model = frozen_model(spec, batch)
    (_, _), (convolution, norm) = model.encoder.blocks[0].layers
    kernel = np.zeros((48, 16), np.float32)
    kernel[32:, 0:8:2] = rng.normal(size=(16, 4))
    kernel[32:, 1:8:2] = -kernel[32:, 0:8:2]
    convolution.taps.kernel.assign(kernel)
    norm.gamma.assign(np.repeat([0.0, 1.0], 8))
    norm.beta.assign(np.repeat([0.0, 0.5], 8))
    return model, batch, label


@pytest.mark.parametrize("insertion", ["serial", "parallel", "parallel_after"])
def test_adapters_learn_from_what_a_frozen_backbone_forgets(insertion, tmp_path):
    """click = what the event before the newest one was, which H doesn't say."""
    model, batch, label = forgetful("adapters", insertion)
    before = values(model)
    train(model, batch, tmp_path, epochs=100)
    assert auc(label, model.serve(batch)["click"].numpy()[:, 0]) > 0.99
    moved = {ref for ref, value in values(model).items() if value != before[ref]}
    assert not moved & refs(model.encoder, *model.tables.values())


def test_heads_alone_cannot(tmp_path):
    model, batch, label = forgetful("classifier")
    items = batch["sequence_item"]
    earlier = 2 * NUM_RESERVED + 1 - items[:, :-1]  # each the other of the two
    other = batch | {"sequence_item": tf.concat([earlier, items[:, -1:]], 1)}
    np.testing.assert_allclose(model.user_embedding(batch), model.user_embedding(other), atol=1e-6)
    train(model, batch, tmp_path, epochs=100)
    assert auc(label, model.serve(batch)["click"].numpy()[:, 0]) < 0.65
