"""The whole plan of a spec on a cluster."""

from __future__ import annotations

import collections
import dataclasses
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import psutil

from data.spec import Spec
from modules.training.cluster.config import Cluster
from modules.training.input.localize import large_tables
from modules.training.planning.baseline import Baselines, Running, measure, request_of
from modules.training.planning.blueprint import Blueprint, Kind, draw
from modules.training.planning.checkpoint import CheckpointSize, checkpoint_size, write_speed
from modules.training.planning.memory import ProcessMemory, processes
from modules.training.planning.network import Traffic, traffic
from modules.training.planning.phase import PhaseName, phase_of
from modules.training.planning.probe import Seen
from modules.training.planning.recommend import Fit, recommend
from modules.training.planning.rows import TableRows
from modules.training.planning.size import BatchSize

_CALIBRATED_ROWS = 200_000
"""Large tables are cut to so many rows for a calibration: a step's time is flat in them."""


@dataclasses.dataclass(frozen=True)
class TableParameters:
    """rows: row numbers; parameters: of the stored rows."""

    name: str
    rows: TableRows
    large: bool
    parameters: int
    bytes: int
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Attributes:
    dense: all weights outside tables, experts among them.
    expert: of the MoE-FFNs' experts, of which a token goes through one in `experts`.
    active: dense parameters that a token meets.
    """

    tables: tuple[TableParameters, ...]
    dense: int
    expert: int
    experts: int
    active: int

    @property
    def total(self) -> int:
        return self.dense + sum(table.parameters for table in self.tables)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Attributes:
    memory: every process'.
    calibration: of the real model on this machine; None: it wasn't asked for.
    disk: bytes a second.
    fits: placements for `limit`, if one was given.
    """

    phase: PhaseName
    size: BatchSize
    cluster: Cluster
    parameters: Parameters
    baselines: Baselines
    memory: tuple[ProcessMemory, ...]
    traffic: Traffic
    checkpoint: CheckpointSize
    disk: float
    calibration: Seen | None
    limit: int | None
    fits: tuple[Fit, ...]

    def as_json(self) -> dict[str, Any]:
        """Bytes, seconds and counts, as JSON's types."""
        return {
            "phase": self.phase,
            "batch": dataclasses.asdict(self.size),
            "placement": self.cluster.placement,
            "parameters": {
                **dataclasses.asdict(self.parameters),
                "total": self.parameters.total,
                "tables": [
                    dataclasses.asdict(table) | {"rows": table.rows._asdict()}
                    for table in self.parameters.tables
                ],
            },
            "baselines": dataclasses.asdict(self.baselines),
            "memory": [{"process": p.name, "bytes": p.bytes, **p.parts} for p in self.memory],
            "traffic": self.traffic,
            "checkpoint": self.checkpoint._asdict() | {"disk_bytes_per_second": self.disk},
            "calibration": self.calibration.model_dump() if self.calibration else None,
            "fits": [
                {
                    "placement": f.placement,
                    "ps": f.servers,
                    "largest": f.largest.name,
                    "largest_bytes": f.largest.bytes,
                    "refused": f.refused,
                }
                for f in self.fits
            ],
        }


def make_plan(
    spec: Spec,
    name: PhaseName,
    rows: Mapping[str, TableRows],
    cluster: Cluster,
    size: BatchSize,
    *,
    calibrate: bool = False,
    limit: int | None = None,
) -> Plan:
    """Counts, starts processes for their baselines (about 20 s), and writes 256 MiB to the disk.

    Args:
      size: of a step's batch.
      calibrate: train a few real steps here, which also takes the memory of the dense part.
      limit: bytes that a process may have.

    Raises:
      MemoryError: a calibration was asked for, but wouldn't fit this machine's free memory.
    """
    counts = {table: known.rows for table, known in rows.items()}
    own_ids = cluster.placement == "multi_worker_mirrored"
    blueprint = draw(spec, name, counts, size, own_ids)
    baselines = measure(spec, name, counts)
    return Plan(
        phase=name,
        size=size,
        cluster=cluster,
        parameters=parameters_of(blueprint, rows),
        baselines=baselines,
        memory=tuple(processes(blueprint, cluster, baselines)),
        traffic=traffic(blueprint, cluster),
        checkpoint=checkpoint_size(blueprint, cluster),
        disk=write_speed(os.getcwd()),
        calibration=_calibrate(spec, name, counts, size, baselines) if calibrate else None,
        limit=limit,
        fits=tuple(recommend(blueprint, spec, cluster, baselines, limit)) if limit else (),
    )


def parameters_of(blueprint: Blueprint, rows: Mapping[str, TableRows]) -> Parameters:
    """Table by table, and what isn't in tables."""
    stored: dict[str, int] = collections.defaultdict(int)
    stored_bytes: dict[str, int] = collections.defaultdict(int)
    state: dict[str, int] = collections.defaultdict(int)
    large = {weight.table for weight in blueprint.of("large table")}
    known = dict(rows)
    for place, weight in enumerate(blueprint.weights):
        beside = None if weight.beside is None else blueprint.weights[weight.beside]
        if weight.table and beside is None:
            # A table that isn't the spec's: the architecture has it beside one that is (KEEP-C).
            known.setdefault(weight.table, TableRows(weight.shape[0], "the architecture's own"))
            stored[weight.table] += weight.elements
            stored_bytes[weight.table] += weight.bytes
        elif beside is not None and beside.table:
            state[beside.table] += blueprint.weights[place].bytes
    tables = tuple(
        TableParameters(t, of_table, t in large, stored[t], stored_bytes[t], state[t])
        for t, of_table in known.items()
    )
    dense, expert = _elements(blueprint, "dense", "expert"), _elements(blueprint, "expert")
    active = dense - expert + expert // blueprint.experts
    return Parameters(tables, dense, expert, blueprint.experts, active)


def _elements(blueprint: Blueprint, *kinds: Kind) -> int:
    return sum(weight.elements for weight in blueprint.of(*kinds))


def _calibrate(
    spec: Spec, name: PhaseName, counts: Mapping[str, int], size: BatchSize, baselines: Baselines
) -> Seen:
    large = large_tables(spec, counts)
    least = max(_CALIBRATED_ROWS, spec.model.full_softmax_rows + 1)
    few = {t: min(n, least) if t in large else n for t, n in counts.items()}
    (alone,) = processes(draw(spec, name, few, size), Cluster(), baselines)
    free = psutil.virtual_memory().available
    if alone.bytes > free:
        raise MemoryError(
            f"--calibrate: the dense part needs {alone.bytes / 2**30:.1f} GiB here, and"
            f" {free / 2**30:.1f} GiB are free"
        )
    request = request_of(spec, name, few, size)
    with (
        tempfile.TemporaryDirectory() as folder,
        Running(request.cluster, folder, request) as running,
    ):
        return running.seen()


def default_size(spec: Spec, name: PhaseName) -> BatchSize:
    """The spec's batch of instances as long as they get, each with 16 targets."""
    return BatchSize(phase_of(spec, name).batch_size, spec.sequence.window, 16)
