"""What the planner counts is what the real objects have."""

import collections
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.planning import spec_of
from data.spec import Spec, load_spec, parse_spec
from modules.embeddings.local_tables import LocalTables
from modules.embeddings.stacked import MAX_ROWS
from modules.models.tables import table_dim
from modules.models.user_model import UserModel
from modules.training.checkpoint.dense import dense_snapshot
from modules.training.cluster.config import Cluster, parse_cluster
from modules.training.planning.baseline import Baselines
from modules.training.planning.batch import synthetic_batch, with_empty_rows
from modules.training.planning.blueprint import draw, total
from modules.training.planning.memory import processes, too_large
from modules.training.planning.narrow import narrow
from modules.training.planning.network import traffic
from modules.training.planning.phase import build, phase_of
from modules.training.planning.plan import parameters_of
from modules.training.planning.recommend import recommend
from modules.training.planning.rows import rows_of
from modules.training.planning.size import BatchSize
from modules.training.step import Step
from modules.training.tuned import freeze, tuned_share
from tests.modules.conftest import ROWS, make_spec, with_architecture

SIZE = BatchSize(instances=3, events=5, targets=2)
BASE = Baselines(trainer=1000, graph=100, server=500)
SIZES = {"hidden_dim": 8, "num_blocks": 1, "num_heads": 2, "num_experts": 3, "ffn_dim": 6}
MANY = 10**12 // 8 + 1
"""Rows of width 8: 10^12 parameters."""


def _spec(**model):
    return make_spec(model={**SIZES, "tower_dims": [8], "full_softmax_rows": 20, **model})


def _without_layers(**changes):
    """Of few operations, for where the encoder isn't what is asked about."""
    spec = make_spec(training={"pretrain": {"epochs": 0}}, **changes)
    return with_architecture(spec, "shared_bottom")


def _placed(**cluster):
    return parse_cluster(cluster)


@pytest.fixture(scope="module")
def drawn():
    return draw(_spec(), "finetune", ROWS, SIZE)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_variables_are_those_that_training_makes(name):
    spec = _spec()
    drawn = draw(spec, name, ROWS, SIZE)
    batch = with_empty_rows(synthetic_batch(spec, ROWS, SIZE), spec, ROWS)
    module, loss = build(spec, name, ROWS, batch)
    step = Step(module, loss, phase_of(spec, name), 1)
    tables = LocalTables(step.large)
    saved = dense_snapshot({"module": module, "step": step, "tables": tables})
    real = collections.Counter((value.shape, value.dtype.name) for value in saved.values())
    counted = collections.Counter((weight.shape, weight.dtype) for weight in drawn.weights)
    # Nothing is left out; what no checkpoint has (dropout's generators) has a value at most.
    assert not real - counted
    assert all(math.prod(shape) <= 1 for shape, _ in counted - real)
    experts = drawn.of("expert")
    assert experts and all(w.shape[0] == 3 for w in experts)
    state = [w for w in drawn.of("large table") if w.beside is not None]
    assert {w.table for w in state} == {"item"}
    assert {w.dtype for w in state} == {"float32", "uint8"}
    assert all(size > 0 for size in drawn.gradients)


def test_a_narrowed_model_looks_channels_up_together_as_the_model_does():
    spec = load_spec("simulator")
    rows = {table: known.rows for table, known in rows_of(spec, {}).items()}
    narrowed, few = narrow(spec, rows)

    def together(of: Spec, count: dict[str, int]) -> list[tuple[bool, bool, bool]]:
        tables = list(of.tables)
        return [
            (count[a] <= MAX_ROWS, of.is_large(a, count[a]), table_dim(of, a) == table_dim(of, b))
            for a in tables
            for b in tables
        ]

    assert len({table_dim(spec, t) for t in spec.tables}) > 2 and max(rows.values()) > MAX_ROWS
    assert together(narrowed, few) == together(spec, rows)
    assert max(few.values()) < max(rows.values())


def test_what_is_frozen_is_neither_tuned_nor_has_state(drawn):
    tuning = {"finetune": {"tune": "adapters", "adapters": {"bottleneck_dim": 2}}}
    spec = make_spec(model=dict(_spec().model), training=tuning)
    frozen = draw(spec, "finetune", ROWS, SIZE)
    model = UserModel(spec, ROWS)
    model(with_empty_rows(synthetic_batch(spec, ROWS, SIZE), spec, ROWS))
    everything = sum(w.elements for w in drawn.of("dense", "expert", "small table"))
    everything += sum(w.elements for w in drawn.of("large table") if w.beside is None)
    freeze(model)
    assert frozen.tuned == pytest.approx(tuned_share(model) * everything)
    assert drawn.tuned <= everything
    of_large = frozen.of("large table")
    assert [w.table for w in of_large] == ["item"] and of_large[0].beside is None
    assert total(frozen.of("optimizer")) < total(drawn.of("optimizer")) / 2


def test_tables_that_an_architecture_has_beside_the_specs_count():
    spec = with_architecture(make_spec(training={"pretrain": {"epochs": 0}}), "keep_c")
    drawn = draw(spec, "finetune", ROWS, SIZE)
    known = parameters_of(drawn, rows_of(spec, ROWS))
    assert {t.name: t.rows.rows for t in known.tables} == ROWS | {
        f"extraction_{table}": count for table, count in ROWS.items()
    }
    stored = [w for w in drawn.weights if w.table and w.beside is None]
    assert known.total == known.dense + sum(w.elements for w in stored) >= drawn.tuned


@pytest.mark.parametrize(
    "architecture", ["bert", pytest.param("supermoe", marks=pytest.mark.exhaustive)]
)
def test_adapters_of_any_width_are_planned(architecture):
    tuning = {"finetune": {"tune": "adapters", "adapters": {"bottleneck_dim": 8}}}
    spec = with_architecture(make_spec(training=tuning), architecture)
    assert draw(spec, "finetune", ROWS, SIZE).step_bytes > 0


def test_plugged_in_knowledge_is_planned(tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(6, np.float32)), 2)
    users = pa.table({"user_id": ["a", "b", "c"], "embedding": vectors})
    pq.write_table(users, tmp_path / "users.parquet")
    spec = _without_layers(knowledge={"item": "item", "path": str(tmp_path)})
    names = [weight.name for weight in draw(spec, "finetune", ROWS, SIZE).of("counter")]
    assert any("keys" in name for name in names)


def test_a_trillion_parameters_take_no_memory_and_many_servers():
    spec = _spec()
    drawn = draw(spec, "finetune", ROWS | {"item": MANY}, SIZE)
    assert 10**12 < parameters_of(drawn, rows_of(spec, {"item": MANY})).total < 1.001 * 10**12
    cluster = _placed(placement="hybrid", processes={"ps": 2}, rest_dtype="float32")
    memory = processes(drawn, cluster, BASE)
    servers = [p for p in memory if p.role == "ps"]
    exact = MANY * (8 * 4 + 4 + 1)
    assert sum(p.parts["large tables"] for p in servers) == exact
    (first, second) = too_large(memory, {"ps": 24 * 2**30})
    assert first.startswith("ps 0 needs 2,1") and "may have 24.0 GiB" in first
    single, sharded, tier = recommend(drawn, spec, cluster, BASE, 24 * 2**30)
    assert single.servers == 0 and single.largest.bytes > 24 * 2**30
    least = exact / (24 * 2**30)
    assert least <= tier.servers < least + 2 and least <= sharded.servers < least + 2
    assert tier.largest.bytes <= 24 * 2**30


@pytest.mark.parametrize(
    ("item", "refused"),
    [
        ({"rows": 7, "top_k": 5}, {"hybrid": "and the spec has none; lower that number"}),
        (
            {"dynamic": {"capacity": 16, "tail_rows": 6}},
            {
                "parameter_server": "parameter_server can't train the dynamic table 'item'",
                "hybrid": "hybrid can't train the dynamic table 'item'",
            },
        ),
    ],
)
def test_what_run_refuses_is_not_recommended(item, refused, drawn):
    channel = {"name": "item", "scope": "sequence", "kind": "id", "dim": 8, "mask_prediction": True}
    spec = make_spec(
        channels=[channel | item], tasks=[{"name": "old", "per": "user", "label": "age"}]
    )
    fits = recommend(drawn, spec, Cluster(), BASE, 24 * 2**30)
    said = {fit.placement: fit.refused for fit in fits if fit.refused}
    assert said.keys() == refused.keys()
    assert all(refused[placement] in said[placement] for placement in said)


def test_halves_at_rest_and_on_the_wire_are_counted(drawn):
    exact, halved = (
        _placed(placement="hybrid", processes={"ps": 3}, rest_dtype=d, wire_dtype=d)
        for d in ("float32", "bfloat16")
    )
    held = [
        sum(p.parts.get("large tables", 0) for p in processes(drawn, cluster, BASE))
        for cluster in (exact, halved)
    ]
    assert held[0] - held[1] == ROWS["item"] * 8 * 2
    distinct = drawn.distinct["item"]
    sent = [traffic(drawn, cluster)["rows pulled"] for cluster in (exact, halved)]
    assert sent == [distinct * (4 + 8 * 4), distinct * (4 + 8 * 2)]


def test_every_byte_of_parameter_server_is_on_one_server(drawn):
    cluster = _placed(
        placement="parameter_server", processes={"worker": 2, "ps": 3}, min_shard_bytes=64
    )
    memory = processes(drawn, cluster, BASE)
    assert [p.name for p in memory] == ["chief 0", "worker 0", "worker 1", "ps 0", "ps 1", "ps 2"]
    held = sum(p.bytes - BASE.server for p in memory if p.role == "ps")
    assert held == sum(w.bytes for w in drawn.weights)


def test_a_step_grows_with_the_batch_and_the_widths():
    """Data decide some sizes, a narrow model's run tells them; the widths are the wide graph's."""
    few, many = (
        draw(spec_of(), "finetune", {"item": 50_000}, BatchSize(n, 16, 2)).step_bytes
        for n in (16, 32)
    )
    wide_spec = spec_of(hidden_dim=64, ffn_dim=256)
    wide = draw(wide_spec, "finetune", {"item": 50_000}, BatchSize(16, 16, 2)).step_bytes
    assert 1.6 * few < many < 2.2 * few
    assert wide > 1.4 * few


@pytest.mark.parametrize("name", ["simulator", "kuairand_pure"])
def test_rows_are_bounded_before_transform(name):
    spec = load_spec(name)
    rows = rows_of(spec, {})
    assert rows.keys() == spec.tables.keys()
    assert all(known.rows > 3 for known in rows.values())
    with pytest.raises(ValueError, match=r"no table \['nothing'\]; there are: "):
        rows_of(spec, {"nothing": 5})


@pytest.mark.parametrize(
    "architecture", ["bert", pytest.param("supermoe", marks=pytest.mark.exhaustive)]
)
def test_expanded_targets_are_planned_too(architecture):
    raw = with_architecture(spec_of(), architecture).model_dump(mode="json")
    causal, expanded = (
        parse_spec(raw | {"sequence": raw["sequence"] | {"targets": targets}})
        for targets in ("causal", "expanded")
    )
    size = BatchSize(instances=4, events=16, targets=8)
    sequence_once, every_target = (
        draw(spec, "finetune", {"item": 50_000}, size).step_bytes for spec in (causal, expanded)
    )
    assert every_target > 2 * sequence_once


@pytest.mark.parametrize(
    ("architecture", "weighting"),
    [
        ("shared_bottom", "gradnorm"),
        ("shared_bottom", "pcgrad"),
        *(
            pytest.param("supermoe", weighting, marks=pytest.mark.exhaustive)
            for weighting in ("gradnorm", "pcgrad", "uncertainty", "bilevel")
        ),
    ],
)
def test_learned_lambdas_and_gradients_by_task_are_planned_too(architecture, weighting):
    training = {"pretrain": {"epochs": 0}, "finetune": {"weighting": weighting}}
    spec = with_architecture(make_spec(training=training), architecture)
    drawn = draw(spec, "finetune", ROWS, SIZE)
    lambdas = [weight for weight in drawn.of("dense") if weight.name == "log_lambda"]
    assert len(lambdas) == (weighting != "pcgrad")
