import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data.channels import CategoryChannel, DenseChannel, IdChannel
from modules.embeddings import stacked
from modules.embeddings.table import PAD, EmbeddingTable
from modules.layers.feature_projection import FeatureProjection

D = 6
NAN = np.nan
CHANNELS = (
    IdChannel(name="item", scope="sequence", kind="id"),
    CategoryChannel(name="tag", scope="sequence", kind="category", multi_valued=True),
    DenseChannel(name="amount", scope="sequence", kind="dense"),
    IdChannel(name="other", scope="sequence", kind="id", table="item"),
)


def make(policy="float32", dropout=0.0):
    keras.utils.set_random_seed(0)
    policy = keras.mixed_precision.Policy(policy)
    tables = {
        "item": EmbeddingTable(20, 4, "item", dtype=policy),
        "tag": EmbeddingTable(9, 3, "tag", dtype=policy),
    }
    features = {
        "sequence_item": tf.constant([[3, 4, 19], [PAD, 2, 5]], tf.int64),
        "sequence_tag": tf.constant(
            [[[3, 4, PAD], [PAD, PAD, PAD], [8, PAD, PAD]], [[5, 6, 7], [1, PAD, PAD], [3, 3, 4]]],
            tf.int64,
        ),
        "sequence_amount": tf.constant([[0.5, NAN, -2.0], [NAN, 0.0, 3.0]]),
        "sequence_other": tf.constant([[4, 4, 4], [3, PAD, 3]], tf.int64),
        "sequence_unused": tf.constant([1]),
    }
    return FeatureProjection(CHANNELS, tables, D, dropout, dtype=policy), tables, features


def numpy_eq_4(layer, tables, features):
    rows = {name: table.rows.numpy().copy() for name, table in tables.items()}
    for r in rows.values():
        r[PAD] = 0
    ids = features["sequence_tag"].numpy()
    count = np.maximum((ids != PAD).sum(-1, keepdims=True), 1)
    amount = features["sequence_amount"].numpy()
    concatenated = np.concatenate(
        [
            rows["item"][features["sequence_item"].numpy()],
            rows["item"][features["sequence_other"].numpy()],  # of one width: side by side
            rows["tag"][ids].sum(-2) / count,
            np.nan_to_num(amount)[..., None],
            np.isnan(amount)[..., None],
        ],
        axis=-1,
    )
    x = concatenated @ layer.projection.kernel.numpy() + layer.projection.bias.numpy()
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return tf.nn.gelu(tf.constant(x, tf.float32)).numpy()


def test_equation_4():
    layer, tables, features = make()
    y = layer(features)
    assert y.shape == (2, 3, D)
    np.testing.assert_allclose(y, numpy_eq_4(layer, tables, features), rtol=1e-4, atol=1e-5)


def test_any_leading_axes():
    layer, _, features = make()
    whole = layer(features).numpy()
    one_event = {k: v[1, 2] for k, v in features.items() if k != "sequence_unused"}
    np.testing.assert_allclose(layer(one_event), whole[1, 2], rtol=1e-5, atol=1e-6)
    extra_axis = {k: v[tf.newaxis] for k, v in features.items()}
    np.testing.assert_allclose(layer(extra_axis)[0], whole, rtol=1e-5, atol=1e-6)


def test_more_padding_values_change_nothing():
    layer, _, features = make()
    wider = dict(features, sequence_tag=tf.pad(features["sequence_tag"], [[0, 0], [0, 0], [0, 4]]))
    np.testing.assert_allclose(layer(wider), layer(features), atol=1e-6)


def test_missing_is_told_from_zero():
    layer, _, features = make()
    zero = dict(features, sequence_amount=tf.zeros([2, 3]))
    missing = dict(features, sequence_amount=tf.fill([2, 3], NAN))
    assert np.abs(layer(zero) - layer(missing)).max() > 1e-2


@pytest.mark.parametrize("max_rows", [0, 1_024])
def test_tables_belong_to_the_caller_and_get_finite_gradients(monkeypatch, max_rows):
    monkeypatch.setattr(stacked, "MAX_ROWS", max_rows)
    layer, tables, features = make(dropout=0.2)
    layer(features)
    assert len(layer.trainable_variables) == 4  # kernel, bias, scale, offset
    assert not any(isinstance(m, EmbeddingTable) for m in layer.submodules)
    sources = [*layer.trainable_variables, *(t.rows for t in tables.values())]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(layer(features, training=True)))
    gradients = tape.gradient(loss, sources)
    # A large table's gradient must not be as large; a small one's may.
    assert isinstance(gradients[-2], tf.Tensor if max_rows else tf.IndexedSlices)
    assert isinstance(gradients[-1], tf.IndexedSlices)
    for g in map(tf.convert_to_tensor, gradients):
        assert np.isfinite(g).all() and g.numpy().any()
    used = {2, 3, 4, 5, 19}
    moved = tf.convert_to_tensor(gradients[-2]).numpy().any(axis=1)
    assert set(np.flatnonzero(moved)) == used


def many_channels(count):
    """Ids of two widths, some sharing a table, and numbers, in turns; and their features."""
    channels, tables, features = [], {}, {}
    rng = np.random.default_rng(0)
    for i in range(count):
        name, dim = f"c{i}", (4, 6)[i % 2]
        if i % 5 == 4:
            channels.append(DenseChannel(name=name, scope="sequence", kind="dense"))
            values = rng.normal(size=(2, 7)).astype(np.float32)
            values[rng.random((2, 7)) < 0.3] = NAN
        else:
            table = f"t{i - 10 if i % 10 == 3 and i > 10 else i}"
            tables.setdefault(table, EmbeddingTable(5 + i, dim, table))
            channels.append(IdChannel(name=name, scope="sequence", kind="id", table=table))
            values = rng.integers(PAD, tables[table].num_rows, (2, 7))
        features[f"sequence_{name}"] = tf.constant(values)
    return channels, tables, features


def widths(channels, tables):
    return [2 if c.kind == "dense" else tables[c.table_name].dim for c in channels]


def test_channels_computed_at_once_are_what_each_alone_is(monkeypatch):
    """Against one lookup a channel: outputs, and gradients of kernel and tables."""
    channels, tables, features = many_channels(25)
    found, kernels = [], []
    for max_rows in (1_024, 0):
        monkeypatch.setattr(stacked, "MAX_ROWS", max_rows)
        layer = FeatureProjection(channels, tables, D)
        layer(features)
        # Which channel, and dense values apart from their absence, each row of the kernel reads.
        number = {c.feature: i for i, c in enumerate(channels)}
        reads = []
        for group in layer._blocks.groups:
            if group[0].kind == "dense":
                reads += [(number[c.feature], part) for part in (0, 1) for c in group]
            else:
                reads += [
                    (number[c.feature], k) for c in group for k in range(tables[c.table_name].dim)
                ]
        order = np.array(sorted(range(len(reads)), key=reads.__getitem__))
        assert len(reads) == len(set(reads)) == sum(widths(channels, tables))
        if not kernels:
            kernels.append(layer.projection.kernel.numpy()[order])
        else:
            assert len(layer._blocks.groups) > 15  # each alone, but for the dense ones
            kernel = np.empty_like(kernels[0])
            kernel[order] = kernels[0]
            layer.projection.kernel.assign(kernel)
        with tf.GradientTape() as tape:
            y = layer(features)
            loss = tf.reduce_sum(tf.sin(y))
        sources = [layer.projection.kernel, *(t.rows for t in tables.values())]
        of_kernel, *of_tables = map(tf.convert_to_tensor, tape.gradient(loss, sources))
        found.append([y.numpy(), of_kernel.numpy()[order], *(g.numpy() for g in of_tables)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_graph_has_no_operation_per_channel():
    def operations(count):
        channels, tables, features = many_channels(count)
        layer = FeatureProjection(channels, tables, D)
        layer(features)

        @tf.function(autograph=False)
        def train(features):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.sin(layer(features)))
            return tape.gradient(loss, [t.rows for t in tables.values()])

        graph = train.get_concrete_function(features).graph
        # What a table comes in and its gradient goes out by.
        plumbing = {"Placeholder", "ReadVariableOp", "Identity", "Const"}
        return sorted(op.type for op in graph.get_operations() if op.type not in plumbing)

    assert operations(150) == operations(50)


def test_checkpoint_holds_a_shared_table_once(tmp_path):
    _, tables, _ = make()
    root = tf.Module()
    root.tables = list(tables.values())
    root.projections = [FeatureProjection(CHANNELS, tables, D) for _ in range(2)]
    path = tf.train.Checkpoint(root=root).write(str(tmp_path / "c"))
    names = [name for name, shape in tf.train.list_variables(path) if shape in ([20, 4], [9, 3])]
    assert len(names) == 2


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    reference, tables, features = make()
    expected = numpy_eq_4_after_build(reference, tables, features)
    layer, _, _ = make(policy)
    y = layer(features)
    assert y.dtype == policy.removeprefix("mixed_")
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, atol=0.1)


def numpy_eq_4_after_build(layer, tables, features):
    layer(features)
    return numpy_eq_4(layer, tables, features)


def test_graph_with_unknown_dimensions_traces_once():
    layer, _, features = make()
    del features["sequence_unused"]
    layer(features)
    traces = []

    @tf.function(
        input_signature=[
            {k: tf.TensorSpec([None] * v.shape.rank, v.dtype) for k, v in features.items()}
        ]
    )
    def call(features):
        traces.append(1)
        return layer(features)

    for b, i in ((2, 3), (1, 2), (0, 3)):
        part = {k: v[:b, :i] for k, v in features.items()}
        np.testing.assert_allclose(call(part), layer(part), atol=1e-6)
    assert len(traces) == 1


def test_legible_errors():
    with pytest.raises(ValueError, match="'sequence_tag' reads table 'tag'.*among \\['item'\\]"):
        FeatureProjection(CHANNELS, {"item": EmbeddingTable(5, 2, "item")}, D)
    with pytest.raises(ValueError, match="at least one channel"):
        FeatureProjection((), {}, D)
