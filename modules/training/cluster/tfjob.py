"""The Kubeflow TFJob (kubeflow.org/v1) of a cluster: the same roles, placement and dials.

The training-operator sets `TF_CONFIG` in every pod. `restartPolicy: OnFailure` everywhere:
under `ExitCode` codes below 128 are final, also a pre-empted trainer's 75.
"""

from __future__ import annotations

import hashlib
from typing import Any

import yaml

from modules.training.cluster.config import ROLES, Cluster, ClusterError, Kubernetes, Role
from modules.training.cluster.server import server_arguments

_REPLICA_NAMES: dict[Role, str] = {"chief": "Chief", "worker": "Worker", "ps": "PS"}
# The operator looks for these names, and puts this port into TF_CONFIG's addresses.
_CONTAINER, _PORT_NAME, _PORT = "tensorflow", "tfjob-port", 2222
_GPU = "nvidia.com/gpu"
_TO_LEAVE_SECONDS = 10
"""A server's, once it has outlasted the trainers."""


def tfjob(cluster: Cluster, task: str) -> dict[str, Any]:
    """The manifest of a cluster that trains `task` (a path in the shared volume).

    The job's name is `kubernetes.name` and a hash of `task`: `kubectl apply` of the next task must
    not find the job of the last one, which has ended and stays so.

    Raises:
      ClusterError: the cluster has no `kubernetes`, or the task isn't in its volume.
    """
    kubernetes = cluster.kubernetes
    if kubernetes is None:
        raise ClusterError(
            "kubernetes: a manifest needs it: {name: …, image: …, volume: {claim: …}}"
        )
    require_in_volume(kubernetes, task)
    suffix = hashlib.sha256(task.encode()).hexdigest()[:8]
    replicas = {
        _REPLICA_NAMES[role]: _replica(cluster, kubernetes, role, task)
        for role in ROLES
        if cluster.count(role)
    }
    processes = sum(cluster.count(role) for role in ROLES)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "TFJob",
        "metadata": {"name": f"{kubernetes.name}-{suffix}", "namespace": kubernetes.namespace},
        "spec": {
            "runPolicy": {
                "cleanPodPolicy": "Running",  # servers don't end by themselves
                "backoffLimit": cluster.max_restarts * processes,  # the operator adds them all up
            },
            "tfReplicaSpecs": replicas,
        },
    }


def require_in_volume(kubernetes: Kubernetes, path: str) -> None:
    """Checks that pods find `path`. Raises `ClusterError`."""
    mount = kubernetes.volume.mount.rstrip("/")
    if not path.startswith(f"{mount}/"):
        raise ClusterError(
            f"kubernetes.volume.mount: pods find what they read in the shared volume, below"
            f" {mount}/, not at {path}"
        )


def manifest_yaml(cluster: Cluster, task: str) -> str:
    """`tfjob` as a file."""
    return yaml.safe_dump(tfjob(cluster, task), sort_keys=False, width=100)


def _replica(cluster: Cluster, kubernetes: Kubernetes, role: Role, task: str) -> dict[str, Any]:
    trains = role in cluster.trainer_roles
    training = ["-m", "modules.training.task", f"--task={task}"]
    # A deletion or a drain tells all pods at once; trainers save what servers hold.
    serving = [*server_arguments(cluster), f"--linger={cluster.grace_seconds}"]
    container = {
        "name": _CONTAINER,
        "image": kubernetes.image,
        "command": ["python"],
        "args": training if trains else serving,
        "ports": [{"name": _PORT_NAME, "containerPort": _PORT}],
        "resources": _resources(kubernetes, role),
        "volumeMounts": [{"name": "training", "mountPath": kubernetes.volume.mount}],
    }
    cpu = getattr(kubernetes, role).cpu
    if role in cluster.device_roles and cpu.isdigit():
        # TensorFlow would start a thread for every core of the host, whatever the pod may use.
        container["env"] = [{"name": "TF_NUM_INTRAOP_THREADS", "value": cpu}]
    claim = {"claimName": kubernetes.volume.claim}
    pod = {
        "terminationGracePeriodSeconds": cluster.grace_seconds
        + (0 if trains else _TO_LEAVE_SECONDS),
        "containers": [container],
        "volumes": [{"name": "training", "persistentVolumeClaim": claim}],
    }
    return {
        "replicas": cluster.count(role),
        "restartPolicy": "OnFailure",
        "template": {"spec": pod},
    }


def _resources(kubernetes: Kubernetes, role: Role) -> dict[str, dict[str, str]]:
    asked = getattr(kubernetes, role)
    amounts = {"cpu": asked.cpu, "memory": asked.memory}
    if asked.gpus:
        amounts[_GPU] = str(asked.gpus)
    # Memory isn't overcommitted: a parameter server that grows past its node loses its shard.
    return {"requests": amounts, "limits": dict(amounts)}
