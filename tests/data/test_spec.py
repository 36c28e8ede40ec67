"""The spec: what it refuses and in which words, what it derives, and that it survives JSON."""

from __future__ import annotations

import copy
import json
import pathlib

import hypothesis.strategies as st
import pytest
from hypothesis import given

from data import spec as spec_lib
from data.architectures import LAYERED
from data.simulator import simulator_spec
from data.spec import SpecError, load_spec, parse_spec

BUNDLED = sorted(p.stem for p in pathlib.Path(spec_lib.__file__).parent.glob("specs/*.yaml"))


def _changed(**changes) -> dict:
    return copy.deepcopy(simulator_spec()) | changes


def _with_channel(**channel) -> dict:
    raw = _changed()
    raw["channels"].append(channel)
    return raw


def _with_one_sequence_channel(**changes) -> dict:
    raw = _changed(**changes)
    raw["channels"] = [
        c for c in raw["channels"] if c["scope"] == "context" or c["name"] == "product"
    ]
    return raw


def _with_task(**changes) -> dict:
    raw = _changed()
    raw["tasks"][0] |= changes
    return raw


def _unpredicted() -> dict:
    raw = _changed()
    for channel in raw["channels"]:
        channel.pop("mask_prediction", None)
    return raw


def _with_two_optimizers() -> dict:
    raw = _with_channel(
        name="x", scope="sequence", kind="id", dynamic={"capacity": 8, "tail_rows": 8}
    )
    raw["training"]["finetune"]["table_optimizer"] = "adagrad"
    return raw


def _finetuned(architecture="nextitnet", **finetune) -> dict:
    model = {"architecture": architecture, "hidden_dim": 16}
    return _changed(model=model, training={"finetune": finetune})


def _untrained(**finetune) -> dict:
    return _changed(training={"pretrain": {"epochs": 0}, "finetune": finetune})


def _ranked_without_labels() -> dict:
    raw = _changed(training={"finetune": {"pairwise_weight": 0.5}})
    return raw | {"tasks": [task for task in raw["tasks"] if task.get("per") == "user"]}


def _ranking(**finetune) -> dict:
    negatives = {"negatives": {"item": "product"}}
    return _with_task(loss="bpr") | {"training": {"finetune": negatives | finetune}}


def _predicting_next(architecture, targets) -> dict:
    return _changed(
        sequence={"targets": targets},
        model={"architecture": architecture},
        training={"pretrain": {"objective": "next_event"}},
    )


def _s3(item="product", attributes=("category", "merchant"), **settings) -> dict:
    named = {"item": item, "attributes": list(attributes)}
    return _changed(
        sequence={"targets": "expanded"},
        training={"pretrain": {"objective": "s3", "s3": named} | settings},
    )


def _adapters(bottleneck_dim=2, **settings) -> dict:
    return {"tune": "adapters", "adapters": {"bottleneck_dim": bottleneck_dim, **settings}}


TAGS = {"name": "tags", "scope": "sequence", "kind": "category", "multi_valued": True}
LIKED = {"name": "liked", "scope": "candidate", "kind": "category"}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (_changed(chanels=[]), "chanels: unknown key"),
        (_changed(sequence={"max_length": 0}), "sequence.max_length: .* (got 0)"),
        (_changed(sequence={"max_length": 64, "window": 64}), "window must be larger than max_le"),
        (_changed(tasks=[]), "tasks: at least one is needed"),
        (_changed(split={"by": "time"}), "split: 'by: time' needs 'at'"),
        (_changed(split={"history": "frozen"}), "'history: frozen' goes with 'by: time'"),
        (_changed(model={"hidden_dim": 10, "num_heads": 4}), "hidden_dim 10 is not a multiple"),
        (_changed(evaluation={"activity_edges": [80, 30]}), "activity_edges [80, 30] don't rise"),
        (_changed(evaluation={"activity_edges": [30, 30]}), "activity_edges [30, 30] don't rise"),
        (_with_channel(name="x", scope="sequence", kind="text"), "channels.28(x): Input tag 'te"),
        (
            _with_channel(name="X", scope="sequence", kind="dense"),
            "channels.28(X).dense.name: Stri",
        ),
        (_with_channel(**simulator_spec()["channels"][1]), "'product' is declared twice"),
        (_with_channel(name="length", scope="sequence", kind="dense"), "'length' is a reserved na"),
        (_with_channel(name="mask", scope="sequence", kind="dense"), "'mask' is a reserved name"),
        (_with_channel(name="x", scope="sequence", kind="id"), "id table 'x' needs 'rows'"),
        (
            _with_channel(name="product_2", scope="candidate", kind="id", table="produkt"),
            "id table 'produkt' needs 'rows' (or 'dynamic') on one of its channels; only candidate"
            " channel 'product_2' has it, the other id tables are merchant, product",
        ),
        (
            _with_channel(**LIKED, table="click", column="click_label"),
            "candidate channel 'liked' reads 'click_label', an outcome or a task's label",
        ),
        (_with_channel(**LIKED, column="click"), "candidate channel 'liked' reads 'click', an out"),
        (_with_channel(**LIKED, mask_prediction=True), "only sequence channels take mask_predict"),
        (
            _with_channel(name="x", scope="sequence", kind="dense", column="click_oracle"),
            "'x' reads an oracle column",
        ),
        (
            _with_channel(name="x", scope="context", kind="dense", column="$interval"),
            "$interval is a dense sequence or candidate column",
        ),
        (
            _with_channel(name="x", scope="candidate", kind="category", table="category", dim=5),
            "table 'category' is shared with different dim: sequence category=16, candidate x=5",
        ),
        (
            _with_channel(name="x", scope="candidate", kind="category", table="product"),
            "table 'product' is shared with different kind",
        ),
        (_with_task(name="user_id"), "tasks: 'user_id' is a reserved name"),
        (_with_task(name="target_count"), "tasks: 'target_count' is a reserved name"),
        (_with_task(name="conversion"), "tasks: 'conversion' is declared twice"),
        (_with_task(type="multiclass"), "'classes' goes with type multiclass"),
        (
            _with_task(type="multiclass", classes=["a"]),
            "tasks.0(click).classes: Tuple should have at le",
        ),
        (_with_task(positive=[]), "tasks.0(click).positive: Tuple should have at least 1 item"),
        (_with_task(type="regression", positive=["1"]), "'positive' goes with type binary"),
        (_with_task(type="regression"), "tasks: 'click': 'min_auc' goes with type binary"),
        (
            _with_task(type="regression", thresholds={"min_gauc": 0.6}),
            "tasks: 'click': 'min_gauc' goes with type binary",
        ),
        (
            _with_task(type="multiclass", classes=["a", "b"], thresholds={"min_auc": 0.6}),
            "tasks: 'click': 'min_auc' goes with type binary",
        ),
        (
            _with_task(per="user", thresholds={"min_gauc": 0.6}),
            "tasks: 'click': 'min_gauc' goes with tasks per impression",
        ),
        (
            _with_task(group_by=None, thresholds={"min_gauc": 0.6}),
            "tasks: 'click': 'min_gauc' needs groups to rank within; leave out 'group_by: null'",
        ),
        (_unpredicted(), "skip the phase with 'training.pretrain.epochs: 0'"),
        (_with_two_optimizers(), "give both phases one 'table_optimizer'"),
        (_finetuned(tune="adapters"), "'tune: adapters' and 'adapters' go together"),
        (_finetuned(**_adapters() | {"tune": "all"}), "'tune: adapters' and 'adapters' go tog"),
        (
            _changed(
                model={"architecture": "mmoe", "pooling": "max"},
                training={"pretrain": {"epochs": 0}},
            ),
            "'pooling' is of an encoder in layers: one of aetn, bert, nextitnet, supermoe, not m",
        ),
        (
            _changed(model={"hidden_dim": 1, "num_heads": 1, "pooling": "max_mean"}),
            "model: pooling max_mean halves H: 'hidden_dim' must be at least 2",
        ),
        (
            _changed(
                model={"architecture": "two_tower", "context": "heads"},
                training={"pretrain": {"epochs": 0}},
            ),
            "model: 'context: heads' would keep context from two_tower, which reads it in H alone",
        ),
        (
            _changed(
                model={"architecture": "keep_c", "context": "heads"},
                domain={"channel": "product", "values": ["1"]},
                training={"pretrain": {"epochs": 0}},
            ),
            "model: 'context: heads' would keep context from keep_c, which reads it in H alone",
        ),
        (_finetuned(**_adapters(16)), "bottleneck_dim 16 is no bottleneck: model.hidden_dim is 16"),
        (
            _finetuned("bert", **_adapters(insertion="serial_after")),
            "'insertion: serial_after' goes with nextitnet; bert takes serial or parallel",
        ),
        (_predicting_next("nextitnet", "expanded"), "needs 'sequence.targets: causal'"),
        (_predicting_next("aetn", "causal"), "aetn has a pre-training of its own"),
        (
            _changed(training={"finetune": {"weighting": "pcgrad", "weighting_rate": 2.0}}),
            "weighting pcgrad learns no λ: it takes no 'weighting_rate'",
        ),
        (
            _changed(model={"architecture": "ple"}),
            "ple has no pre-training; skip the phase with 'training.pretrain.epochs: 0'",
        ),
        (_changed(model={"architecture": "din", "heads": "ple"}), "din is its heads"),
        (_untrained(tune="classifier"), "leaves frozen what nothing has trained"),
        (
            _changed(training={"finetune": {"pretraining_weight": 0.5, "user_share": 0.1}}),
            "would pre-train on 'user_share' of the users only",
        ),
        (_ranking(weighting="bilevel"), "'weighting: bilevel' validates by labels 0 and 1"),
        (_ranked_without_labels(), "'pairwise_weight' ranks by binary tasks per impression"),
        (_changed(model={"heads": "mmoe", "shared_experts": 0}), "'shared_experts' must be at lea"),
        (_with_task(exclude=["nobody"]), "'click' excludes ['nobody'], no context channel"),
        (_with_task(weight=float("nan")), "tasks.0(click).weight: Input should be a finite number"),
        (_s3(s3=None), "training.pretrain: 'objective: s3' and 's3' go together"),
        (
            _s3(objective="masked_channels"),
            "training.pretrain: 'objective: s3' and 's3' go together",
        ),
        (_s3() | {"sequence": {}}, "'objective: s3' needs 'sequence.targets: expanded'"),
        (_s3(item="category"), "item 'category' isn't a single-valued id channel of scope 'seq"),
        (_s3(attributes=["price"]), "attributes ['price'] aren't id or category channels of sc"),
        (_s3(attributes=["product"]), "attributes ['product'] aren't id or category channels of"),
        (_s3(attributes=[]), "training.pretrain.s3.attributes: Tuple should have at least 1 item"),
        (
            _s3() | {"model": {"architecture": "mtssl"}},
            "mtssl has a pre-training of its own: .* s3",
        ),
        (
            _with_one_sequence_channel(model={"architecture": "mtssl", "context": "heads"}),
            "mtssl contrasts two views of a user, .* encoder reads; there are ['product']",
        ),
    ],
)
def test_a_bad_key_is_named(raw, said):
    with pytest.raises(SpecError) as error:
        parse_spec(raw, "shop.yaml")
    first, *reasons = str(error.value).splitlines()
    assert first == "shop.yaml: not a valid spec:"
    start, *end = said.split(".* ")
    assert len(reasons) == 1 and start in reasons[0] and all(part in reasons[0] for part in end)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (
            _with_channel(name="price_2", scope="sequence", kind="dens", normalize="log1p"),
            "  channels.28(price_2): Input tag 'dens' found using 'kind' does not match any of the"
            " expected tags: 'category', 'id', 'dense'",
        ),
        (
            _with_channel(name="price_2", scope="sequence", kind="dense", normalise="log1p"),
            "  channels.28(price_2).dense.normalise: unknown key; did you mean 'normalize'?",
        ),
        (_with_task(labl="click"), "  tasks.0(click).labl: unknown key; did you mean 'label'?"),
        (
            _changed(training={"finetune": {"epoch": 2}}),
            "  training.finetune.epoch: unknown key; did you mean 'epochs'?",
        ),
        # a key of id channels, nothing like those of a dense one
        (
            _with_channel(name="price_2", scope="sequence", kind="dense", dynamic={"capacity": 8}),
            "  channels.28(price_2).dense.dynamic: unknown key",
        ),
    ],
)
def test_a_slip_is_told_in_one_line_with_what_was_meant(raw, line):
    with pytest.raises(SpecError) as error:
        parse_spec(raw, "shop.yaml")
    assert str(error.value).splitlines()[1:] == [line]


def test_adapters_fit_every_layered_encoder():
    for architecture in LAYERED:
        finetune = parse_spec(_finetuned(architecture, **_adapters())).training.finetune
        assert finetune.adapters.insertion == "parallel"
    assert parse_spec(_finetuned(**_adapters(insertion="parallel_after")))


def test_without_pre_training_nothing_needs_to_be_predicted():
    raw = _unpredicted()
    raw["training"]["pretrain"]["epochs"] = 0
    assert not parse_spec(raw).mcp_channels


def test_s3_predicts_what_it_names_and_nothing_marked():
    raw = _unpredicted()
    raw |= {part: _s3()[part] for part in ("sequence", "training")}
    assert parse_spec(raw).training.pretrain.s3.item == "product"


def test_with_some_tasks_only_all_else_stays():
    spec = load_spec("simulator")
    fewer = spec.with_tasks("night_owl", "click")
    assert [task.name for task in fewer.tasks] == ["click", "night_owl"]
    assert fewer.model_copy(update={"tasks": spec.tasks}) == spec
    with pytest.raises(SpecError, match="tasks: no clicks; there are click, conversion"):
        spec.with_tasks("clicks")


def test_what_only_a_task_may_not_see_reaches_the_others_encoder():
    spec = load_spec("kuairand_pure")
    assert "fans_range" not in {c.name for c in spec.encoder_context}
    assert "fans_range" in {c.name for c in spec.with_tasks("click").encoder_context}


def test_an_encoder_may_read_no_context_at_all():
    spec = load_spec("kuairand_pure")
    raw = spec.model_dump(mode="json")
    alone = parse_spec(raw | {"model": raw["model"] | {"context": "heads"}})
    assert spec.encoder_context and not alone.encoder_context
    for task in spec.tasks:
        assert alone.context_for(task) == spec.context_for(task)


def test_no_rule_stumbles_over_what_another_refuses():
    raw = _changed(model={"architecture": "mtssl", "context": "heads"})
    raw["channels"] = [c for c in raw["channels"] if c["scope"] != "sequence"]
    with pytest.raises(SpecError, match="at least one needs scope 'sequence'"):
        parse_spec(raw)


def test_every_bad_key_is_named_at_once():
    with pytest.raises(SpecError) as error:
        parse_spec(_changed(chanels=[], sequence={"max_length": 0}))
    assert len(str(error.value).splitlines()) == 3


def test_every_broken_rule_is_told_at_once():
    raw = _with_task(name="user_id") | {"split": {"by": "time"}, "training": {}}
    with pytest.raises(SpecError) as error:
        parse_spec(raw)
    assert str(error.value).splitlines()[1:] == [
        "  tasks: 'user_id' is a reserved name",
        "  split: 'by: time' needs 'at'",
    ]


def test_a_multi_valued_channels_count_is_no_other_channels_name():
    raw = _with_channel(**TAGS)
    parse_spec(raw)
    raw["channels"].append({"name": "tags_count", "scope": "sequence", "kind": "dense"})
    with pytest.raises(SpecError, match="'tags_count' is a reserved name"):
        parse_spec(raw)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a valid spec:"),
        (b"- a", "not a valid spec:"),
        (b"a: [b", "not YAML:"),
        (b"name: caf\xe9", "can't be read:"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path, content, said):
    path = tmp_path / "shop.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as error:
        load_spec(path)
    assert str(error.value).startswith(f"{path}: {said}")


def test_a_missing_spec_names_those_there_are():
    with pytest.raises(SpecError, match="nope: no such spec.*" + ", ".join(BUNDLED)):
        load_spec("nope")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["name", "source", "channels", "tasks", "kind", "x"]), x)))  # fmt: skip
def test_whatever_it_is_given_it_says_what_is_wrong(raw):
    with pytest.raises(SpecError):
        parse_spec(raw)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_spec_survives_json(name):
    """Nodes get it as JSON, and a run keeps it without its defaults."""
    spec = load_spec(name)
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    kept = parse_spec(json.loads(spec.model_dump_json(exclude_unset=True)))
    assert kept == spec and kept.fingerprint() == spec.fingerprint()


def test_a_column_that_is_a_tasks_label_is_never_its_input():
    spec = load_spec("kuairand_pure")
    video_author = {c.name for c in spec.context_for(spec.task("video_author"))}
    assert not video_author & {"is_video_author", "fans_range"}
    assert "active_degree" in video_author
    shared = {c.name for c in spec.encoder_context}
    assert not shared & {"is_video_author", "fans_range", "active_degree"}
    assert "register_days" in shared
