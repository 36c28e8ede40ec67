"""Steps a second, from a step that was timed here and the bytes that it sends."""

from __future__ import annotations

from typing import NamedTuple

from modules.training.cluster.config import Cluster
from modules.training.planning.network import Traffic


class Speed(NamedTuple):
    """compute, transfer: seconds of one trainer's (or worker's) step; steps: a second, of all."""

    compute: float
    transfer: float
    steps: float


def speed(cluster: Cluster, traffic: Traffic, step_seconds: float, bandwidth: float) -> Speed:
    """Expected if every process had a machine like this one, each with its own network card.

    Synchronous trainers share a step's batch; `hybrid` fetches while it computes; asynchronous
    workers add up, until the servers' cards are full.

    Args:
      step_seconds: of a whole batch in one process.
      bandwidth: bytes a second, of a machine.
    """
    hosts = sum(cluster.count(role) for role in cluster.trainer_roles)
    sent = sum(traffic.values())
    compute, transfer = step_seconds / hosts, sent / bandwidth
    at_once = cluster.placement == "hybrid"
    rate = 1 / (max(compute, transfer) if at_once else compute + transfer)
    if cluster.placement == "parameter_server":
        rate *= cluster.count("worker")
    servers = cluster.count("ps")
    if servers and sent:
        rate = min(rate, servers * bandwidth / sent)
    return Speed(compute, transfer, rate)
