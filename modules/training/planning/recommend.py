"""Which placements hold a model when no process may have more than so much memory."""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

from modules.training.cluster.config import Cluster, Placement, Processes
from modules.training.planning.baseline import Baselines
from modules.training.planning.blueprint import Blueprint, total
from modules.training.planning.memory import ProcessMemory, processes


class Fit(NamedTuple):
    """A placement; servers: the fewest that do, 0 where it has none; None: no number does."""

    placement: Placement
    servers: int | None
    largest: ProcessMemory
    """Of the processes; where none fits, what doesn't."""


_TRIED: tuple[Placement, ...] = ("single", "parameter_server", "hybrid")


def recommend(plan: Blueprint, cluster: Cluster, baselines: Baselines, limit: int) -> list[Fit]:
    """One line a placement; `cluster` gives the dials, the devices and the workers.

    Args:
      limit: bytes that a process may have.
    """
    return [_fit(plan, _of(cluster, placement), baselines, limit) for placement in _TRIED]


def _of(cluster: Cluster, placement: Placement) -> Cluster:
    workers = max(1, cluster.count("worker")) if placement == "parameter_server" else 0
    servers = 0 if placement == "single" else 1
    return cluster.model_copy(
        update={
            "placement": placement,
            "addresses": None,
            "processes": Processes(worker=workers, ps=servers),
            "devices": None if placement == "single" else cluster.devices,
        }
    )


def _fit(plan: Blueprint, cluster: Cluster, baselines: Baselines, limit: int) -> Fit:
    def largest(servers: int) -> ProcessMemory:
        memory = processes(plan, _with(cluster, servers), baselines)
        return max(memory, key=lambda process: process.bytes)

    servers = cluster.count("ps")
    one = largest(servers)
    if one.bytes <= limit:
        return Fit(cluster.placement, servers, one)
    if not servers:
        return Fit(cluster.placement, None, one)
    room = limit - baselines.server
    if room <= 0:
        return Fit(cluster.placement, None, one)
    held = total(
        plan.weights if cluster.placement == "parameter_server" else plan.of("large table")
    )
    most = 2 * math.ceil(held / room) + 2
    # More servers never hold more each, but for a few variables dealt out otherwise.
    place = bisect.bisect_left(
        range(1, most), True, key=lambda n: _servers(plan, cluster, baselines, n).bytes <= limit
    )
    found = largest(place + 1)
    return Fit(cluster.placement, place + 1 if found.bytes <= limit else None, found)


def _with(cluster: Cluster, servers: int) -> Cluster:
    workers = cluster.count("worker")
    return cluster.model_copy(update={"processes": Processes(worker=workers, ps=servers)})


def _servers(plan: Blueprint, cluster: Cluster, baselines: Baselines, count: int) -> ProcessMemory:
    """The largest server of so many."""
    memory = processes(plan, _with(cluster, count), baselines)
    return max((p for p in memory if p.role == "ps"), key=lambda process: process.bytes)
