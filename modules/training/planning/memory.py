"""Memory of every process of a cluster, from a phase's blueprint."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping

import tensorflow as tf

from modules.embeddings.shard import shard_rows
from modules.training.cluster.config import Cluster, Role
from modules.training.planning.baseline import Baselines
from modules.training.planning.blueprint import Blueprint, Weight, total

Parts = dict[str, int]
_GATHERED = 3
"""Copies of a batch's rows in a step: as read, their gradients, their update."""


@dataclasses.dataclass(frozen=True)
class ProcessMemory:
    """parts: bytes by what they are for."""

    role: Role
    index: int
    parts: Parts

    @property
    def name(self) -> str:
        return f"{self.role} {self.index}"

    @property
    def bytes(self) -> int:
        """Resident while training."""
        return sum(self.parts.values())


def processes(plan: Blueprint, cluster: Cluster, baselines: Baselines) -> list[ProcessMemory]:
    """Every process of the cluster; chief, workers, parameter servers."""
    return [
        *_computing(plan, cluster, baselines),
        *(
            ProcessMemory("ps", index, {"baseline": baselines.server, **parts})
            for index, parts in enumerate(_on_servers(plan, cluster))
        ),
    ]


def _computing(plan: Blueprint, cluster: Cluster, baselines: Baselines) -> Iterator[ProcessMemory]:
    devices = cluster.devices or 1
    hosts = sum(cluster.count(role) for role in cluster.trainer_roles)
    gradients, rows = sum(plan.gradients), _GATHERED * row_bytes(plan)
    activations = max(0, plan.step_bytes - gradients)
    if cluster.placement == "parameter_server":
        yield ProcessMemory("chief", 0, {"baseline": baselines.trainer})
        step = total(dense_weights(plan)) + gradients + activations + rows
        for index in range(cluster.count("worker")):
            base = baselines.server + baselines.graph
            yield ProcessMemory("worker", index, {"baseline": base, "step": step})
        return
    parts = {"baseline": baselines.trainer}
    for part, weights in _by_part(plan).items():
        if part != "large tables" or cluster.placement != "hybrid":
            parts[part] = devices * total(weights)
    parts["step"] = devices * (gradients + rows) + activations // hosts
    if cluster.placement == "hybrid":
        ahead = cluster.staleness + cluster.fetchers + 1
        parts["rows fetched ahead"] = ahead * row_bytes(plan)
    for role in cluster.trainer_roles:
        for index in range(cluster.count(role)):
            yield ProcessMemory(role, index, parts)


def _by_part(plan: Blueprint) -> dict[str, tuple[Weight, ...]]:
    return {
        "dense": plan.of("dense", "expert", "counter"),
        "small tables": plan.of("small table"),
        "optimizer": plan.of("optimizer"),
        "large tables": plan.of("large table"),
    }


def dense_weights(plan: Blueprint) -> tuple[Weight, ...]:
    """All that a step reads whole."""
    return plan.of("dense", "expert", "small table")


def row_bytes(plan: Blueprint) -> int:
    """Of one batch's distinct rows of all large tables, float32."""
    return sum(plan.distinct[t] * dim * tf.float32.size for t, dim in table_dims(plan).items())


def table_dims(plan: Blueprint) -> dict[str, int]:
    """Width of every large table."""
    return {w.table: w.shape[1] for w in plan.of("large table") if w.table and w.beside is None}


def _on_servers(plan: Blueprint, cluster: Cluster) -> list[Parts]:
    servers = cluster.count("ps")
    held: list[Parts] = [collections.defaultdict(int) for _ in range(servers)]
    if cluster.placement == "hybrid":
        for weight in plan.of("large table"):
            for shard, size in enumerate(_cut(weight, servers, cluster.rest_dtype)):
                held[shard]["large tables"] += size
    elif cluster.placement == "parameter_server":
        part_of = {id(w): part for part, weights in _by_part(plan).items() for w in weights}
        for weight, places in _round_robin(plan, cluster):
            for server, size in zip(places, _cut(weight, len(places)), strict=True):
                held[server][part_of[id(weight)]] += size
    return [dict(parts) for parts in held]


def _round_robin(plan: Blueprint, cluster: Cluster) -> Iterator[tuple[Weight, list[int]]]:
    """Servers of each weight's shards, as ParameterServerStrategy deals them out."""
    servers, dealt = cluster.count("ps"), 0
    partitioner = tf.distribute.experimental.partitioners.MinSizePartitioner(
        cluster.min_shard_bytes, max_shards=servers
    )
    places: list[list[int]] = []
    for weight in plan.weights:
        if weight.beside is not None:
            places.append(places[weight.beside])
        else:
            shards = 1
            if weight.kind == "large table":
                shards = int(partitioner(tf.TensorShape(weight.shape), tf.float32, axis=0)[0])
            places.append([(dealt + shard) % servers for shard in range(shards)])
            dealt += shards
        yield weight, places[-1]


def _cut(weight: Weight, shards: int, rest_dtype: str | None = None) -> Iterator[int]:
    """Bytes of a weight's shards; its rows in `rest_dtype`."""
    if shards == 1 and rest_dtype is None:
        yield weight.bytes
        return
    is_rows = weight.beside is None
    item = tf.as_dtype(rest_dtype if rest_dtype and is_rows else weight.dtype).size
    a_row = weight.elements // weight.shape[0] * item
    for shard in range(shards):
        yield shard_rows(weight.shape[0], shard, shards) * a_row


def too_large(memory: list[ProcessMemory], limits: Mapping[Role, int]) -> list[str]:
    """In words, every process that needs more than its role may have (bytes)."""
    return [
        f"{p.name} needs {gib(p.bytes)}, but may have {gib(limits[p.role])}"
        for p in memory
        if p.role in limits and p.bytes > limits[p.role]
    ]


def gib(size: float) -> str:
    """`3.1 GiB`."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"
