"""The cluster: one YAML that says on which processes a model trains, and the dials of that.

The model's code never sees it. Roles and `TF_CONFIG` are TFJob's: `chief` is the coordinator
or the first trainer, `worker` a further trainer or a worker of the coordinator, `ps` holds
tables (and, under `parameter_server`, every variable). On Kubernetes the YAML gives the
placement and the dials, and `TF_CONFIG` the addresses and the process's own role.

No TensorFlow is imported here: commands start at once.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Literal

import pydantic
import yaml

from data.strict import InvalidError, Strict, validated

Placement = Literal["single", "mirrored", "multi_worker_mirrored", "parameter_server", "hybrid"]
Role = Literal["chief", "worker", "ps"]
ROLES: tuple[Role, ...] = ("chief", "worker", "ps")
DType = Literal["float32", "float16", "bfloat16"]

PREEMPTED = 75
"""Exit code of a trainer that saved because it was told to stop (EX_TEMPFAIL): start it again."""
LOST = 76
"""Exit code of a trainer that lost another process: start it again once that is back."""

_Count = Annotated[int, pydantic.Field(ge=0)]
_Positive = Annotated[int, pydantic.Field(ge=1)]
_Address = Annotated[str, pydantic.StringConstraints(pattern=r"^[^\s:/]+:\d{1,5}$")]
_Quantity = Annotated[str, pydantic.StringConstraints(pattern=r"^\d+(\.\d+)?(m|[KMGTPE]i?|k)?$")]


class ClusterError(ValueError):
    """A cluster that can't be used. The message names the file, the key and the fix."""


class Processes(Strict):
    """A local cluster: this machine starts these beside the chief."""

    worker: _Count = 0
    ps: _Count = 0


class Addresses(Strict):
    """Processes that are started elsewhere, `host:port` by index."""

    chief: tuple[_Address, ...] = ()
    worker: tuple[_Address, ...] = ()
    ps: tuple[_Address, ...] = ()

    @pydantic.model_validator(mode="after")
    def _are_distinct(self) -> Addresses:
        if len(self.chief) != 1:
            raise ValueError(f"chief: exactly one address is needed, not {len(self.chief)}")
        every = [address for role in ROLES for address in getattr(self, role)]
        for address in every:
            if every.count(address) > 1:
                raise ValueError(f"{address} is given twice; every process needs its own")
        return self


class Checkpoint(Strict):
    """When a run saves, and what it keeps."""

    every_steps: _Positive = 500
    keep: _Positive = 2
    """The newest so many are kept, and what their deltas stand on; from two on also one that
    stands on nothing of that."""
    max_deltas: _Count = 8
    """Deltas of tables in a row before all touched rows are written again."""


class Threads(Strict):
    """TensorFlow's thread pools in every process; null leaves the choice to it."""

    intra_op: _Positive | None = None
    inter_op: _Positive | None = None


class Resources(Strict):
    """What a pod of one role asks for and may use."""

    cpu: _Quantity = "4"
    memory: _Quantity = "16Gi"
    gpus: _Count = 0


class Volume(Strict):
    """The shared volume: data, the task's file, checkpoints."""

    claim: str
    mount: str = "/training"


class Kubernetes(Strict):
    """What the TFJob manifest needs beyond the cluster itself."""

    name: Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,40}[a-z0-9])?$")]
    namespace: str = "default"
    image: str
    volume: Volume
    chief: Resources = Resources()
    worker: Resources = Resources()
    ps: Resources = Resources()


class Cluster(Strict):
    placement: Placement = "single"
    processes: Processes | None = None
    addresses: Addresses | None = None
    devices: _Positive | None = None
    """Devices of a trainer process: null is all its GPUs (or its CPU), n is n logical CPU
    devices, which stand in for GPUs."""
    steps_per_call: _Positive = 16
    """parameter_server: steps that one scheduled call trains; 16 is what is read at a time."""
    min_shard_bytes: _Positive = 262_144
    """parameter_server: large tables are cut into shards of at least so many bytes."""
    staleness: _Count = 4
    """hybrid: a batch's rows may miss this trainer's pushes of at most so many earlier batches; 0
    is synchronous with one trainer (others push when they push)."""
    fetchers: _Positive = 2
    """hybrid: threads that fetch the next batches' rows."""
    wire_dtype: DType = "bfloat16"
    """hybrid: of rows and gradients on the network."""
    rest_dtype: DType = "float32"
    """hybrid: of rows in a parameter server's memory (halves are rounded stochastically)."""
    report_every_steps: _Positive = 20
    """Steps between two records of the loss (parameter_server: one a call)."""
    checkpoint: Checkpoint = Checkpoint()
    max_restarts: _Count = 10
    """Of one process within `restart_window`; one more and the run fails."""
    restart_window: Annotated[float, pydantic.Field(gt=0.0)] = 3600.0
    """Seconds after which a restart is forgotten."""
    grace_seconds: _Count = 60
    """What trainers get to save in between SIGTERM and SIGKILL."""
    threads: Threads = Threads()
    kubernetes: Kubernetes | None = None
    """Who trains with this YAML gets a TFJob to apply; without it: processes of this machine."""

    def count(self, role: Role) -> int:
        """How many processes have the role."""
        if self.addresses is not None:
            return len(getattr(self.addresses, role))
        if role == "chief":
            return 1
        return getattr(self.processes, role) if self.processes is not None else 0

    @property
    def trainer_roles(self) -> tuple[Role, ...]:
        """Roles that run the training command; the others run `cluster.server`."""
        every = self.placement in ("multi_worker_mirrored", "hybrid")
        return ("chief", "worker") if every else ("chief",)

    @property
    def device_roles(self) -> tuple[Role, ...]:
        """Roles that compute the model, and so may use GPUs."""
        return ("worker",) if self.placement == "parameter_server" else self.trainer_roles

    def at(self, addresses: Mapping[str, tuple[str, ...]], where: str = "cluster") -> Cluster:
        """This cluster with its processes at `addresses`. Raises `ClusterError`."""
        kept = self.model_dump(exclude={"processes", "addresses"}, exclude_unset=True)
        return parse_cluster({**kept, "addresses": dict(addresses)}, where)

    @pydantic.model_validator(mode="after")
    def _has_the_processes_its_placement_needs(self) -> Cluster:
        if self.processes is not None and self.addresses is not None:
            raise ValueError(
                "processes and addresses: give one; 'processes' are started on this machine,"
                " 'addresses' are of processes started elsewhere"
            )
        needed: dict[str, tuple[Role, ...]] = {
            "multi_worker_mirrored": ("worker",),
            "parameter_server": ("worker", "ps"),
            "hybrid": ("ps",),
        }
        allowed: dict[str, tuple[Role, ...]] = {**needed, "hybrid": ("worker", "ps")}
        for role in ROLES[1:]:
            if role in needed.get(self.placement, ()) and not self.count(role):
                raise ValueError(
                    f"placement: {self.placement} needs at least one {role}; give"
                    f" 'processes: {{{role}: 1}}', or its address under 'addresses.{role}'"
                )
            if role not in allowed.get(self.placement, ()) and self.count(role):
                raise ValueError(
                    f"placement: {self.placement} has no {role} processes; leave {role!r} out or"
                    " choose another placement"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _devices_are_of_one_host(self) -> Cluster:
        if self.placement == "single" and (self.devices or 1) > 1:
            raise ValueError("devices: single trains on one; take placement 'mirrored'")
        several = len(self.trainer_roles) > 1 and self.count("worker")
        if several and (self.devices or 1) > 1:
            raise ValueError(
                "devices: several trainers use all their GPUs, or one CPU device each; logical CPU"
                " devices are for 'mirrored' and for 'hybrid' with one trainer"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _gpus_go_where_the_model_is(self) -> Cluster:
        for role in ROLES:
            asked = self.kubernetes is not None and getattr(self.kubernetes, role).gpus
            if asked and role not in self.device_roles:
                raise ValueError(
                    f"kubernetes.{role}.gpus: a {role} of {self.placement} doesn't compute the"
                    f" model; only {' and '.join(self.device_roles)} may have GPUs"
                )
        return self


class ClusterTask(Strict):
    """One process's place in a cluster."""

    type: Role
    index: _Count
    addresses: Addresses

    @property
    def address(self) -> str:
        """This process's own `host:port`."""
        return getattr(self.addresses, self.type)[self.index]

    @pydantic.model_validator(mode="after")
    def _is_in_the_cluster(self) -> ClusterTask:
        known = len(getattr(self.addresses, self.type))
        if self.index >= known:
            raise ValueError(f"task: {self.type} {self.index}, but the cluster has {known}")
        return self


def load_cluster(path: str | pathlib.Path | None) -> Cluster:
    """Reads and checks a cluster's YAML; None is one process, with the defaults.

    Raises:
      ClusterError: the file is missing, isn't YAML, or has a bad key (all are listed).
    """
    if path is None:
        return Cluster()
    try:
        raw = yaml.safe_load(pathlib.Path(path).read_text())
    except FileNotFoundError:
        raise ClusterError(f"{path}: no such cluster; examples are in deploy/clusters") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise ClusterError(f"{path}: not YAML: {error}") from None
    return parse_cluster({} if raw is None else raw, where=str(path))


def parse_cluster(raw: object, where: str = "cluster") -> Cluster:
    """Checks an already parsed cluster. Raises `ClusterError`; `where` opens its message."""
    try:
        return validated(Cluster, raw)
    except InvalidError as error:
        raise ClusterError(f"{where}: not a valid cluster:\n{error}") from None


def task_from_environment(environment: Mapping[str, str] = os.environ) -> ClusterTask | None:
    """This process's task as `TF_CONFIG` says (TFJob's format), None where it isn't set.

    A process merges the two with `load_cluster(path).at(task.addresses.model_dump())`.

    Raises:
      ClusterError: `TF_CONFIG` isn't JSON, names no chief, or no task of its own cluster.
    """
    text = environment.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ClusterError(f"TF_CONFIG: not JSON: {error}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("task"), dict):
        raise ClusterError('TF_CONFIG: needs "cluster" and "task", as TFJob writes them')
    task = {"type": raw["task"].get("type"), "index": raw["task"].get("index")}
    try:
        return validated(ClusterTask, {**task, "addresses": raw.get("cluster", {})})
    except InvalidError as error:
        raise ClusterError(f"TF_CONFIG: not a valid task:\n{error}") from None


def tf_config(cluster: Cluster, role: Role, index: int) -> str:
    """`TF_CONFIG` of one process, in TFJob's format.

    Raises:
      ClusterError: the cluster has no addresses, or no such process.
    """
    if cluster.addresses is None:
        raise ClusterError("addresses: TF_CONFIG needs every process's address")
    if not 0 <= index < cluster.count(role):
        raise ClusterError(f"addresses.{role}: no {role} {index}; there are {cluster.count(role)}")
    every = {role: list(getattr(cluster.addresses, role)) for role in ROLES}
    addresses = {role: known for role, known in every.items() if known}
    return json.dumps({"cluster": addresses, "task": {"type": role, "index": index}})
