"""What is deployed: configurations that both servers read, manifests that fit their schemas.

No container engine and no Kubernetes cluster is on the machines this was written on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys
import urllib.parse

import jsonschema
import pytest
import yaml
from google.protobuf import text_format

from serving import protos
from serving.knowledge import __main__ as knowledge
from tests.cluster.kubernetes_schema import schema
from tests.repo.source_tree import ROOT

FOLDER = ROOT / "deploy" / "serving"
CONFIGS = {
    "models.config": protos.ModelServerConfig,
    "batching.config": protos.BatchingParameters,
    "monitoring.config": protos.MonitoringConfig,
}
MANIFESTS = sorted((FOLDER / "kubernetes").glob("*.yaml"))


def read_config(name: str, text: str):
    pool = CONFIGS[name].DESCRIPTOR.file.pool
    return text_format.Parse(text, CONFIGS[name](), descriptor_pool=pool)


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_what_the_servers_read(name):
    read_config(name, (FOLDER / name).read_text())


def test_they_say_what_the_manifest_says():
    (mounted,) = [d for d in documents(FOLDER / "kubernetes" / "model-server.yaml")
                  if d["kind"] == "ConfigMap"]  # fmt: skip
    assert set(mounted["data"]) == set(CONFIGS)
    for name, text in mounted["data"].items():
        assert read_config(name, text) == read_config(name, (FOLDER / name).read_text())


def test_the_compose_file_fits_composes_schema():
    vendored = importlib.resources.files("check_jsonschema.builtin_schemas.vendor")
    compose_schema = json.loads((vendored / "compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(compose_schema)(compose_schema)
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    validator.validate(compose)
    compose["services"]["redis"]["comand"] = "typo"
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(compose)


def test_ports_are_published_on_this_machine_only():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    published = [p for s in compose["services"].values() for p in s.get("ports", ())]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    here = [port.split(":")[1] for port in published]
    assert len(here) == len(set(here))


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def model_of(document: dict) -> str:
    """The generated class of an object: `apps/v1` Deployment -> V1Deployment."""
    version = document["apiVersion"].rpartition("/")[2]
    return version[0].upper() + version[1:] + document["kind"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_fit_kubernetes_schema(path):
    for document in documents(path):
        validator = jsonschema.Draft202012Validator(schema(model_of(document)))
        validator.validate(document)
        document["spce"] = {}
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(document)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_objects_name_each_other(path):
    """Selectors find pods, volumes and probes' ports exist, config maps are in the manifests."""
    every = [d for manifest in MANIFESTS for d in documents(manifest)]
    maps = {d["metadata"]["name"] for d in every if d["kind"] == "ConfigMap"}
    for document in documents(path):
        if document["kind"] != "Deployment":
            continue
        pod = document["spec"]["template"]
        selector = document["spec"]["selector"]["matchLabels"]
        assert selector.items() <= pod["metadata"]["labels"].items()
        services = [d for d in documents(path) if d["kind"] == "Service"]
        assert any(s["spec"]["selector"] == selector for s in services)
        volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
        assert {v["configMap"]["name"] for v in volumes.values() if "configMap" in v} <= maps
        for container in pod["spec"]["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} <= set(volumes)
            ports = {port["name"] for port in container["ports"]}
            probes = [v for k, v in container.items() if k.endswith("Probe")]
            called = {
                p[how]["port"] for p in probes for how in ("httpGet", "tcpSocket") if how in p
            }
            assert probes and called <= ports
            numbers = {port["containerPort"] for port in container["ports"]}
            assert {p["grpc"]["port"] for p in probes if "grpc" in p} <= numbers


def test_our_servers_take_the_flags_they_are_given():
    """Every flag of the manifests and the compose file is one that the server's --help knows."""
    arguments = set()
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    arguments |= set(compose["services"]["model-server"]["command"])
    for document in documents(FOLDER / "kubernetes" / "model-server.yaml"):
        if document["kind"] == "Deployment":
            arguments |= set(document["spec"]["template"]["spec"]["containers"][0]["args"])
    helped = subprocess.run(
        [sys.executable, "-m", "serving.server", "--help"],
        cwd=ROOT, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        assert re.search(rf"--(\[no\])?{name}\b", helped), argument


def test_the_knowledge_centre_is_served_from_the_redis_beside_it():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    objects = documents(FOLDER / "kubernetes" / "knowledge.yaml")
    named = {(d["kind"], d["metadata"]["name"]): d["spec"] for d in objects}
    (container,) = named["Deployment", "knowledge"]["template"]["spec"]["containers"]
    for command, redis_ports in (
        (compose["knowledge"]["entrypoint"] + compose["knowledge"]["command"], [6379]),
        (container["command"] + container["args"],
         [port["port"] for port in named["Service", "redis"]["ports"]]),
    ):  # fmt: skip
        assert command[:3] == ["python", "-m", "serving.knowledge"]
        arguments = knowledge._arguments(command[3:])
        store = urllib.parse.urlsplit(arguments.store)
        assert store.scheme == "redis" and store.hostname == "redis" and store.port in redis_ports
        assert (arguments.host, arguments.port) == ("0.0.0.0", 8600)


def test_only_the_knowledge_centre_reaches_its_redis():
    objects = documents(FOLDER / "kubernetes" / "knowledge.yaml")
    deployed = {d["metadata"]["name"]: d["spec"] for d in objects if d["kind"] == "Deployment"}
    policies = {d["metadata"]["name"]: d["spec"] for d in objects if d["kind"] == "NetworkPolicy"}
    assert set(deployed) == set(policies) == {"knowledge", "redis"}
    for name, policy in policies.items():
        assert policy["podSelector"] == deployed[name]["selector"]
        (container,) = deployed[name]["template"]["spec"]["containers"]
        (rule,) = policy["ingress"]
        assert [p["port"] for p in rule["ports"]] == [
            p["containerPort"] for p in container["ports"]
        ]
    (rule,) = policies["redis"]["ingress"]
    assert rule["from"] == [{"podSelector": deployed["knowledge"]["selector"]}]


def test_the_image_installs_all_that_the_servers_import():
    content = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    installed = set(re.search(r'PACKAGES="([^"]+)"', content)[1].split())
    code = (
        # Optional: what is installed imports them where they happen to be.
        "import sys; sys.modules |= dict.fromkeys(('grpc_tools', 'cloudpickle', 'cryptography'));"
        "import json, serving.server.__main__, serving.knowledge.__main__;"
        "import serving.knowledge.parquet, serving.knowledge.redis_store, serving.knowledge.server;"
        "print(json.dumps([getattr(m, '__file__', None) for m in sys.modules.values()]))"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(json.loads(ran.stdout))
    used = {
        distribution.name.lower().replace("_", "-").replace(".", "-")
        for distribution in importlib.metadata.distributions()
        if any(str(distribution.locate_file(file)) in loaded for file in distribution.files or ())
    }
    assert {"grpcio", "numpy", "pyarrow", "redis"} <= used <= installed, used - installed
