"""Clusters that can't work are refused with the key and the fix; TF_CONFIG is TFJob's."""

import json
import pathlib
import subprocess
import sys

import pytest

from modules.training.cluster.config import (
    Cluster,
    ClusterError,
    load_cluster,
    parse_cluster,
    task_from_environment,
    tf_config,
)
from tests.repo.source_tree import ROOT

EXAMPLES = sorted((ROOT / "deploy/clusters").glob("*.yaml"))
KUBERNETES = {"name": "job", "image": "i", "volume": {"claim": "c"}}


def test_no_file_is_one_process():
    cluster = load_cluster(None)
    assert cluster == Cluster()
    assert (cluster.placement, cluster.count("chief"), cluster.count("ps")) == ("single", 1, 0)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load(path):
    assert load_cluster(path).placement != "single"


def test_every_placement_with_processes_has_an_example():
    placements = {load_cluster(path).placement for path in EXAMPLES}
    assert placements == {"mirrored", "multi_worker_mirrored", "parameter_server", "hybrid"}


@pytest.mark.parametrize(
    ("raw", "key", "fix"),
    [
        ({"placment": "single"}, "placment", "unknown key"),
        ({"placement": "hybrid"}, "placement", "processes: {ps: 1}"),
        ({"placement": "hybrid", "processes": {"worker": 1}}, "placement", "at least one ps"),
        ({"placement": "parameter_server", "processes": {"ps": 1}}, "placement", "one worker"),
        ({"placement": "multi_worker_mirrored"}, "placement", "processes: {worker: 1}"),
        (
            {"placement": "multi_worker_mirrored", "processes": {"worker": 1, "ps": 1}},
            "placement",
            "has no ps processes",
        ),
        ({"devices": 2}, "devices", "take placement 'mirrored'"),
        ({"placement": "mirrored", "processes": {"worker": 1}}, "placement", "leave 'worker' out"),
        ({"processes": {}, "addresses": {"chief": ["a:1"]}}, "processes and addresses", "give one"),
        ({"addresses": {"worker": ["a:1"]}}, "addresses", "exactly one"),
        ({"addresses": {"chief": ["nowhere"]}}, "addresses.chief.0", "'nowhere'"),
        (
            {"placement": "hybrid", "addresses": {"chief": ["a:1"], "ps": ["a:1"]}},
            "addresses",
            "a:1 is given twice",
        ),
        ({"wire_dtype": "int8"}, "wire_dtype", "bfloat16"),
        ({"staleness": -1}, "staleness", "greater than or equal to 0"),
        ({"threads": {"inter_op": 0}}, "threads.inter_op", "greater than or equal to 1"),
        ({"checkpoint": {"every": 5}}, "checkpoint.every", "unknown key"),
        ({"kubernetes": {**KUBERNETES, "ps": {"memory": "much"}}}, "kubernetes.ps.memory", "much"),
        (
            {
                "placement": "hybrid",
                "processes": {"ps": 1},
                "kubernetes": {**KUBERNETES, "ps": {"gpus": 1}},
            },
            "kubernetes.ps.gpus",
            "only chief and worker",
        ),
        (
            {
                "placement": "parameter_server",
                "processes": {"ps": 1, "worker": 1},
                "kubernetes": {**KUBERNETES, "chief": {"gpus": 1}},
            },
            "kubernetes.chief.gpus",
            "only worker",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(raw, key, fix):
    with pytest.raises(ClusterError) as error:
        parse_cluster(raw, "cluster.yaml")
    assert "cluster.yaml: not a valid cluster" in str(error.value)
    assert f"  {key}: " in str(error.value)
    assert fix in str(error.value)


def test_files_that_are_no_clusters_are_named(tmp_path: pathlib.Path):
    with pytest.raises(ClusterError, match=r"none\.yaml: no such cluster"):
        load_cluster(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("placement: [")
    with pytest.raises(ClusterError, match=r"bad\.yaml: not YAML"):
        load_cluster(bad)
    bad.write_text("- single")
    with pytest.raises(ClusterError, match=r"bad\.yaml: not a valid cluster"):
        load_cluster(bad)


def test_tf_config_goes_round():
    cluster = parse_cluster(
        {"placement": "hybrid", "addresses": {"chief": ["a:1"], "ps": ["b:1", "b:2"]}}
    )
    text = tf_config(cluster, "ps", 1)
    assert json.loads(text) == {
        "cluster": {"chief": ["a:1"], "ps": ["b:1", "b:2"]},
        "task": {"type": "ps", "index": 1},
    }
    task = task_from_environment({"TF_CONFIG": text})
    assert task is not None
    assert (task.type, task.index, task.address) == ("ps", 1, "b:2")
    with pytest.raises(ClusterError, match=r"addresses\.ps: no ps 2; there are 2"):
        tf_config(cluster, "ps", 2)
    with pytest.raises(ClusterError, match="addresses: TF_CONFIG needs"):
        tf_config(Cluster(), "chief", 0)


def test_the_yaml_gives_the_dials_and_tf_config_the_addresses():
    local = parse_cluster({"placement": "hybrid", "processes": {"ps": 1}, "staleness": 2})
    # As the training-operator writes it.
    text = json.dumps(
        {
            "cluster": {"chief": ["j-chief-0.n.svc:2222"], "ps": ["j-ps-0.n.svc:2222"]},
            "task": {"type": "chief", "index": 0},
            "environment": "cloud",
        }
    )
    task = task_from_environment({"TF_CONFIG": text})
    assert task is not None
    merged = local.at(task.addresses.model_dump())
    assert (merged.placement, merged.staleness, merged.processes) == ("hybrid", 2, None)
    assert merged.addresses == task.addresses
    with pytest.raises(ClusterError, match="TF_CONFIG: not a valid cluster:\n.*needs at least one"):
        local.at({"chief": ("a:1",)}, "TF_CONFIG")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", 'needs "cluster" and "task"'),
        ('{"cluster": {"chief": ["a:1"]}}', 'needs "cluster" and "task"'),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}', "chief"),
        ('{"cluster": {"chief": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "has 0"),
        ('{"cluster": {"chief": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}', "type"),
    ],
)
def test_a_bad_tf_config_is_named(text, said):
    with pytest.raises(ClusterError, match="TF_CONFIG: ") as error:
        task_from_environment({"TF_CONFIG": text})
    assert said in str(error.value)


def test_no_tf_config_is_no_task():
    assert task_from_environment({}) is None


def test_commands_start_without_tensorflow():
    code = (
        "import sys; import tfx_pipeline.commands.launch, tfx_pipeline.commands.manifests;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
