"""Size of a checkpoint, and how fast this machine writes one."""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from typing import NamedTuple

import tensorflow as tf

from modules.training.cluster.config import Cluster
from modules.training.planning.blueprint import Blueprint, total

_PROBE_BYTES = 256 << 20


class CheckpointSize(NamedTuple):
    """Bytes.

    dense: dense weights, small tables, optimizers; in every checkpoint.
    full: with every row of the large tables: at most, as rows never touched aren't written.
    delta: with the rows touched in `every_steps` steps, if none comes twice.
    """

    dense: int
    full: int
    delta: int


def checkpoint_size(plan: Blueprint, cluster: Cluster) -> CheckpointSize:
    dense = total(w for w in plan.weights if w.kind != "large table")
    full = delta = dense
    trainers = cluster.count("worker") if cluster.placement == "parameter_server" else 1
    for rows in (w for w in plan.of("large table") if w.beside is None and w.table):
        # Beside the rows: optimizer state, but not the flags; and each row's number.
        state = (
            w
            for w in plan.of("large table")
            if w.beside is not None and w.table == rows.table and w.dtype == "float32"
        )
        a_row = (rows.bytes + total(state)) // rows.shape[0] + tf.int64.size
        touched = cluster.checkpoint.every_steps * plan.distinct[rows.table or ""] * trainers
        full += rows.shape[0] * a_row
        delta += min(rows.shape[0], touched) * a_row
    return CheckpointSize(dense, full, delta)


def write_speed(folder: str | pathlib.Path) -> float:
    """Bytes a second that reach the disk of `folder`, as a checkpoint's do: written and fsynced."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        started = time.monotonic()
        for _ in range(_PROBE_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return _PROBE_BYTES / (time.monotonic() - started)
