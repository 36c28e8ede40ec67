"""Which placements hold a model when no process may have more than so much memory."""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

from data.spec import Spec
from modules.training.cluster.config import Cluster, ClusterError, Placement, Processes
from modules.training.cluster.possible import require_possible
from modules.training.planning.baseline import Baselines
from modules.training.planning.blueprint import Blueprint, total
from modules.training.planning.memory import ProcessMemory, processes


class Fit(NamedTuple):
    """A placement.

    servers: the fewest that hold what servers hold, 0 where it has none; None: no number does.
    largest: of the processes then. It fits if this one does.
    refused: why `run` wouldn't train the spec so, whatever fits; None: it would.
    """

    placement: Placement
    servers: int | None
    largest: ProcessMemory
    refused: str | None


_TRIED: tuple[Placement, ...] = ("single", "parameter_server", "hybrid")


def recommend(
    plan: Blueprint, spec: Spec, cluster: Cluster, baselines: Baselines, limit: int
) -> list[Fit]:
    """One line a placement; `cluster` gives the dials, the devices and the workers.

    Args:
      limit: bytes that a process may have.
    """
    return [_fit(plan, spec, _of(cluster, placement), baselines, limit) for placement in _TRIED]


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


def _fit(plan: Blueprint, spec: Spec, cluster: Cluster, baselines: Baselines, limit: int) -> Fit:
    servers = _fewest(plan, cluster, baselines, limit) if cluster.count("ps") else 0
    memory = processes(plan, _with(cluster, servers or cluster.count("ps")), baselines)
    largest = max(memory, key=lambda process: process.bytes)
    return Fit(cluster.placement, servers, largest, _refused(cluster, spec))


def _refused(cluster: Cluster, spec: Spec) -> str | None:
    try:
        require_possible(cluster, spec)
    except ClusterError as error:
        return str(error)
    return None


def _fewest(plan: Blueprint, cluster: Cluster, baselines: Baselines, limit: int) -> int | None:
    room = limit - baselines.server
    if room <= 0:
        return None
    held = total(
        plan.weights if cluster.placement == "parameter_server" else plan.of("large table")
    )

    def fits(servers: int) -> bool:
        memory = processes(plan, _with(cluster, servers), baselines)
        return all(process.bytes <= limit for process in memory if process.role == "ps")

    # More servers never hold more each, but for a few variables that are dealt out otherwise.
    counts = range(1, 2 * math.ceil(held / room) + 2)
    servers = counts[min(bisect.bisect_left(counts, True, key=fits), len(counts) - 1)]
    return servers if fits(servers) else None


def _with(cluster: Cluster, servers: int) -> Cluster:
    workers = cluster.count("worker")
    return cluster.model_copy(update={"processes": Processes(worker=workers, ps=servers)})
