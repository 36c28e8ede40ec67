"""The compiled graph: its nodes, what feeds what, and what makes a node run again."""

from __future__ import annotations

import re

import pytest
from tfx.dsl.compiler.compiler import Compiler

from data.simulator import simulate, simulator_spec
from data.spec import parse_spec
from tfx_pipeline import fingerprint
from tfx_pipeline.layout import Layout
from tfx_pipeline.pipeline import create_pipeline, pipeline_name

NODES = [
    "SequenceExampleGen",
    "SpecSchema",
    "StatisticsGen",
    "LatestAccepted",
    "DataValidator",
    "Transform",
    "Pretrain",
    "Finetune",
    "LatestBlessed",
    "Evaluator",
    "ServingCheck",
    "Pusher",
    "UserEmbeddings",
]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> str:
    return str(simulate(tmp_path_factory.mktemp("run") / "data", num_users=20, num_items=50))


def _spec(**changes):
    return parse_spec({**simulator_spec(), **changes})


def _compiled(spec, data_root, tmp_path) -> dict:
    pipeline = create_pipeline(spec, data_root, Layout(tmp_path))
    nodes = [node.pipeline_node for node in Compiler().compile(pipeline).nodes]
    return {node.node_info.id: node for node in nodes}


def _upstream(node) -> set[str]:
    return set(node.upstream_nodes)


def test_the_nodes_run_in_the_order_of_the_design(data_root, tmp_path):
    nodes = _compiled(_spec(), data_root, tmp_path)
    assert set(nodes) == set(NODES)
    place = {name: i for i, name in enumerate(nodes)}
    for name, node in nodes.items():
        assert all(place[other] < place[name] for other in node.upstream_nodes)


def test_nothing_is_pushed_past_a_check(data_root, tmp_path):
    nodes = _compiled(_spec(), data_root, tmp_path)
    assert "DataValidator" in _upstream(nodes["Transform"])
    assert {"Pretrain", "Transform"} <= _upstream(nodes["Finetune"])
    assert {"Evaluator", "ServingCheck", "Finetune"} <= _upstream(nodes["Pusher"])
    assert {"LatestBlessed", "Finetune"} <= _upstream(nodes["Evaluator"])
    assert {"Evaluator", "Pusher"} <= _upstream(nodes["UserEmbeddings"])


def test_no_epochs_of_pretraining_is_no_node(data_root, tmp_path):
    training = {**simulator_spec()["training"], "pretrain": {"epochs": 0}}
    nodes = _compiled(_spec(training=training), data_root, tmp_path)
    assert set(nodes) == set(NODES) - {"Pretrain"}
    assert "base_model" not in nodes["Finetune"].inputs.inputs


def _parameter(node, name: str) -> str:
    return node.parameters.parameters[name].field_value.string_value


def test_spec_and_code_are_part_of_a_trainers_cache_key(data_root, tmp_path):
    spec = _spec()
    config = _parameter(_compiled(spec, data_root, tmp_path)["Finetune"], "custom_config")
    assert fingerprint.of_code("data/spec.py", "data/channels.py", "modules") in config
    other = _spec(training={"seed": 1})
    assert _parameter(_compiled(other, data_root, tmp_path)["Finetune"], "custom_config") != config


def test_every_node_of_ours_has_its_code_in_its_cache_key(data_root, tmp_path):
    nodes = _compiled(_spec(), data_root, tmp_path)
    ours = ("SpecSchema", "DataValidator", "ServingCheck")
    codes = {name: _parameter(nodes[name], "code") for name in ours}
    assert all(re.fullmatch("[0-9a-f]{16}", code) for code in codes.values())
    pipeline = create_pipeline(_spec(), data_root, Layout(tmp_path))
    for node in pipeline.components:
        if node.id in ("SequenceExampleGen", "Evaluator", "UserEmbeddings"):
            arguments = node.executor_spec.beam_pipeline_args
            assert [a for a in arguments if a.startswith("--labels=code=")], node.id


def test_new_data_is_part_of_ingestions_cache_key(data_root, tmp_path):
    first = _compiled(_spec(), data_root, tmp_path)["SequenceExampleGen"]
    other_root = str(simulate(tmp_path / "data", num_users=21, num_items=50))
    second = _compiled(_spec(), other_root, tmp_path)["SequenceExampleGen"]
    assert _parameter(first, "input_fingerprint") != _parameter(second, "input_fingerprint")


def test_code_has_one_fingerprint_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/a.py").write_text("A = 1\n")
    (tmp_path / "modules/note.txt").write_text("not code")
    before = fingerprint.of_code("modules")
    (tmp_path / "modules/note.txt").write_text("still not code")
    assert fingerprint.of_code("modules") == before
    (tmp_path / "modules/a.py").write_text("A = 2\n")
    changed = fingerprint.of_code("modules")
    assert changed != before
    (tmp_path / "modules/b.py").write_text("")
    assert fingerprint.of_code("modules") != changed
    with pytest.raises(FileNotFoundError):
        fingerprint.of_code("nowhere.py")


def test_other_channels_or_tasks_start_a_new_line_of_runs():
    raw = simulator_spec()
    name = pipeline_name(_spec())
    assert pipeline_name(_spec(training={"seed": 1})) == name
    assert pipeline_name(_spec(tasks=raw["tasks"][:2])) != name
    assert pipeline_name(_spec(channels=raw["channels"][:-1])) != name
