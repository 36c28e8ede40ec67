"""The TFJob manifests fit the training-operator's schema, and the committed ones are current.

Not run on a Kubernetes cluster: there is none on the machines this was written on.
`test_kubernetes.py` runs a manifest's commands.
"""

from __future__ import annotations

import copy
import subprocess
import sys

import jsonschema
import pytest
import yaml

from modules.training.cluster.config import ClusterError, load_cluster, parse_cluster
from modules.training.cluster.tfjob import manifest_yaml, tfjob
from tests.cluster.kubernetes_schema import schema
from tests.repo.source_tree import ROOT

TASK = "/training/task.json"
EXAMPLES = {
    path.stem: ROOT / f"deploy/clusters/kubernetes_{path.stem}.yaml"
    for path in sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
}
VALIDATOR = jsonschema.Draft202012Validator(schema("KubeflowOrgV1TFJob"))
KUBERNETES = {"name": "job", "image": "i", "volume": {"claim": "c"}}


def _manifest(name: str) -> dict:
    return tfjob(load_cluster(EXAMPLES[name]), TASK)


def _pod(manifest: dict, replica: str) -> dict:
    return manifest["spec"]["tfReplicaSpecs"][replica]["template"]["spec"]


def test_there_are_examples():
    assert set(EXAMPLES) == {"hybrid", "parameter_server"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_committed_manifests_are_current_and_fit_the_schema(name):
    text = (ROOT / f"deploy/kubernetes/{name}.yaml").read_text()
    assert text == manifest_yaml(load_cluster(EXAMPLES[name]), TASK)
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize("placement", ["single", "mirrored", "multi_worker_mirrored"])
def test_other_placements_fit_too(placement):
    worker = int(placement == "multi_worker_mirrored")
    raw = {"placement": placement, "processes": {"worker": worker}, "kubernetes": KUBERNETES}
    manifest = tfjob(parse_cluster(raw), TASK)
    VALIDATOR.validate(manifest)
    assert list(manifest["spec"]["tfReplicaSpecs"]) == ["Chief", "Worker"][: 1 + worker]


def _misspelt(spec: dict) -> None:
    spec["tfReplicaSpecs"]["PS"]["restartPolicyy"] = "OnFailure"


def _number_for_text(spec: dict) -> None:
    spec["tfReplicaSpecs"]["PS"]["restartPolicy"] = 3


def _text_for_number(spec: dict) -> None:
    spec["tfReplicaSpecs"]["PS"]["replicas"] = "two"


def _bad_deep_down(spec: dict) -> None:
    container = spec["tfReplicaSpecs"]["Chief"]["template"]["spec"]["containers"][0]
    container["ports"][0]["containerport"] = 2222


def _no_containers(spec: dict) -> None:
    del spec["tfReplicaSpecs"]["Chief"]["template"]["spec"]["containers"]


def _args_as_text(spec: dict) -> None:
    spec["tfReplicaSpecs"]["Chief"]["template"]["spec"]["containers"][0]["args"] = "-m x"


def _no_replicas(spec: dict) -> None:
    del spec["tfReplicaSpecs"]


@pytest.mark.parametrize(
    "spoil",
    [
        _misspelt,
        _number_for_text,
        _text_for_number,
        _bad_deep_down,
        _no_containers,
        _args_as_text,
        _no_replicas,
    ],
)
def test_the_schema_refuses_a_wrong_key_or_type(spoil):
    manifest = copy.deepcopy(_manifest("hybrid"))
    spoil(manifest["spec"])
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(manifest)


def test_hybrid_trainers_train_and_its_ps_serve_alone():
    manifest = _manifest("hybrid")
    replicas = manifest["spec"]["tfReplicaSpecs"]
    assert {name: spec["replicas"] for name, spec in replicas.items()} == {
        "Chief": 1,
        "Worker": 1,
        "PS": 4,
    }
    for replica in ("Chief", "Worker"):
        (container,) = _pod(manifest, replica)["containers"]
        assert container["args"] == ["-m", "modules.training.task", f"--task={TASK}"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    (container,) = _pod(manifest, "PS")["containers"]
    serving = ["-m", "modules.training.cluster.server", "--alone", "--linger=120"]
    assert container["args"] == serving
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_parameter_server_workers_serve_and_have_the_gpus():
    manifest = _manifest("parameter_server")
    for replica in ("Worker", "PS"):
        (container,) = _pod(manifest, replica)["containers"]
        assert container["args"] == ["-m", "modules.training.cluster.server", "--linger=120"]
    gpus = {
        name: _pod(manifest, name)["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for name in ("Chief", "Worker", "PS")
    }
    assert gpus == {"Chief": None, "Worker": "1", "PS": None}


def test_another_task_is_another_job():
    cluster = load_cluster(EXAMPLES["hybrid"])
    names = [tfjob(cluster, task)["metadata"]["name"] for task in (TASK, TASK, "/training/b.json")]
    assert names[0] == names[1] != names[2]
    assert all(name.startswith("user-representation-") for name in names)
    longest = {**KUBERNETES, "name": "n" * 42}
    name = tfjob(parse_cluster({"kubernetes": longest}), TASK)["metadata"]["name"]
    assert len(f"{name}-worker-9999") <= 63  # a pod's name is its service's, a DNS label


def _threads(manifest: dict) -> dict[str, list | None]:
    replicas = manifest["spec"]["tfReplicaSpecs"]
    return {name: _pod(manifest, name)["containers"][0].get("env") for name in replicas}


def test_who_computes_the_model_has_threads_for_the_pods_cores():
    def env(cpu: str) -> list[dict[str, str]]:
        return [{"name": "TF_NUM_INTRAOP_THREADS", "value": cpu}]

    assert _threads(_manifest("hybrid")) == {"Chief": env("16"), "Worker": env("16"), "PS": None}
    of_workers = _threads(_manifest("parameter_server"))
    assert of_workers == {"Chief": None, "Worker": env("8"), "PS": None}
    raw = {"kubernetes": {**KUBERNETES, "chief": {"cpu": "1500m"}}}
    assert _threads(tfjob(parse_cluster(raw), TASK)) == {"Chief": None}


def test_trainers_can_save_before_their_servers_go_and_every_pod_comes_back():
    manifest = _manifest("hybrid")
    for name, replica in manifest["spec"]["tfReplicaSpecs"].items():
        pod = _pod(manifest, name)
        assert pod["terminationGracePeriodSeconds"] == (130 if name == "PS" else 120)
        assert replica["restartPolicy"] == "OnFailure"  # ExitCode would take 75 for final
        (container,) = pod["containers"]
        # The names that the operator looks for.
        assert container["name"] == "tensorflow"
        assert container["ports"] == [{"name": "tfjob-port", "containerPort": 2222}]
        (mounted,), (volume,) = container["volumeMounts"], pod["volumes"]
        assert mounted == {"name": volume["name"], "mountPath": "/training"}
        assert volume["persistentVolumeClaim"] == {"claimName": "training"}
    assert manifest["spec"]["runPolicy"]["cleanPodPolicy"] == "Running"


def test_what_a_manifest_needs_is_named():
    with pytest.raises(ClusterError, match="kubernetes: a manifest needs it"):
        tfjob(parse_cluster({}), TASK)
    with pytest.raises(ClusterError, match="below /training/, not at /home/task.json"):
        tfjob(load_cluster(EXAMPLES["hybrid"]), "/home/task.json")


def _manifests(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tfx_pipeline", "manifests", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_command_writes_and_prints_it(tmp_path):
    path = tmp_path / "deep/job.yaml"
    asked = [f"--cluster={EXAMPLES['hybrid']}", f"--task={TASK}"]
    assert _manifests(*asked, f"--output={path}").stdout == f"{path}\n"
    assert _manifests(*asked).stdout == path.read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--cluster and --task: give both"),
        (["--cluster=none.yaml", f"--task={TASK}"], "none.yaml: no such cluster"),
        ([f"--cluster={EXAMPLES['hybrid']}", "--task=/home/t"], "below /training/"),
    ],
)
def test_the_command_says_what_is_missing(flags, said):
    done = _manifests(*flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
