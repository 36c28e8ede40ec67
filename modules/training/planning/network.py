"""Bytes over the network in one step."""

from __future__ import annotations

import tensorflow as tf

from modules.embeddings.tier.graph import ids_dtype
from modules.training.cluster.config import Cluster
from modules.training.planning.blueprint import Blueprint, total
from modules.training.planning.memory import dense_weights, table_dims

Traffic = dict[str, int]


def traffic(plan: Blueprint, cluster: Cluster) -> Traffic:
    """Bytes that one trainer (or worker) sends and receives in a step, by what they are.

    Distinct ids are an upper bound (`synthetic_batch`). All-reduce is counted as a ring's:
    2·(n - 1)/n of the gradients out, and as much in.
    """
    hosts = sum(cluster.count(role) for role in cluster.trainer_roles)
    bytes_by: Traffic = {}
    if cluster.placement == "parameter_server":
        bytes_by |= _rows(plan, tf.int64.size, tf.float32.size)
        bytes_by["dense weights"] = total(dense_weights(plan))
        bytes_by["dense gradients"] = sum(plan.gradients)
    elif cluster.placement == "hybrid":
        wire = tf.as_dtype(cluster.wire_dtype).size
        rows = {w.table: w.shape[0] for w in plan.of("large table") if w.beside is None}
        ids = {t: ids_dtype(n, cluster.count("ps"))().itemsize for t, n in rows.items() if t}
        bytes_by |= _rows(plan, max(ids.values(), default=0), wire)
    if hosts > 1:
        share = 2 * 2 * (hosts - 1) / hosts
        bytes_by["all-reduce"] = int(share * sum(plan.gradients))
        if cluster.placement == "multi_worker_mirrored":
            exchanged = _rows(plan, tf.int64.size, tf.float32.size)["rows pushed"]
            bytes_by["rows gathered"] = exchanged * (hosts - 1) * 2
    return bytes_by


def _rows(plan: Blueprint, id_bytes: int, item_bytes: int) -> Traffic:
    """A pull is ids out and rows in; a push is ids and gradients out."""
    each = sum(
        plan.distinct[table] * (id_bytes + dim * item_bytes)
        for table, dim in table_dims(plan).items()
    )
    return {"rows pulled": each, "rows pushed": each}
