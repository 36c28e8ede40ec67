"""A cluster's placement, in the process that this is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from modules.embeddings.tier.connection import Chunks
from modules.training.cluster.config import Cluster, ClusterError, ClusterTask
from modules.training.placements.hybrid import Hybrid, TierSettings
from modules.training.placements.parameter_server import ParameterServer
from modules.training.placements.placement import Placement
from modules.training.placements.synchronous import Synchronous


def use_devices(cluster: Cluster) -> None:
    """Logical CPU devices that stand in for GPUs, and thread pools; before TensorFlow starts."""
    if cluster.threads.intra_op:
        tf.config.threading.set_intra_op_parallelism_threads(cluster.threads.intra_op)
    if cluster.threads.inter_op:
        tf.config.threading.set_inter_op_parallelism_threads(cluster.threads.inter_op)
    if cluster.devices and cluster.devices > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        logical = [tf.config.LogicalDeviceConfiguration()] * cluster.devices
        tf.config.set_logical_device_configuration(cpu, logical)


def strategy_of(cluster: Cluster, task: ClusterTask | None) -> tf.distribute.Strategy:
    """Connects this trainer (or coordinator) with the others; before TensorFlow starts.

    Raises:
      ClusterError: the placement needs a cluster, and this process isn't in one.
    """
    if cluster.placement == "single":
        return tf.distribute.get_strategy()
    if cluster.placement != "mirrored" and task is None:
        raise ClusterError(f"placement: {cluster.placement} trains in a cluster; see `launch`")
    if cluster.placement == "parameter_server":
        return tf.distribute.ParameterServerStrategy(_resolver(task, ("chief", "worker", "ps")))
    if len(_trainers(cluster, task)) > 1:
        return tf.distribute.MultiWorkerMirroredStrategy(_resolver(task, ("chief", "worker")))
    if cluster.placement == "hybrid" and _num_devices(cluster) == 1:
        return tf.distribute.get_strategy()  # nothing to mirror
    if cluster.devices is None:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(cluster.devices)])


def create(
    cluster: Cluster,
    task: ClusterTask | None,
    strategy: tf.distribute.Strategy,
    features: Mapping[str, tuple[str, ...]],
    newest_chunks: Callable[[], Chunks | None],
    report: Callable[..., None],
) -> Placement:
    """Makes the placement of this trainer (or coordinator).

    Args:
      task: this process's; None: it is alone.
      strategy: of `strategy_of`.
      features: large tables -> the features that read them (`large_tables`).
      newest_chunks: of the large tables in the run's newest checkpoint; None without one.
      report: told what happens to the placement.

    Raises:
      ClusterError: hybrid, but no table is large.
    """
    if cluster.placement == "parameter_server":
        return ParameterServer(
            strategy,
            features,
            workers=cluster.count("worker"),
            servers=cluster.count("ps"),
            steps_per_call=cluster.steps_per_call,
            min_shard_bytes=cluster.min_shard_bytes,
        )
    trainers = _trainers(cluster, task)
    host = trainers.index((task.type, task.index)) if task else 0
    hosts, every = len(trainers), cluster.report_every_steps
    if cluster.placement != "hybrid":
        return Synchronous(strategy, features, host, hosts, every)
    if not features:
        raise ClusterError(
            "placement: hybrid keeps large tables on the parameter servers, but no table has more"
            " than model.full_softmax_rows rows; choose another placement, or lower that"
        )
    assert task is not None  # or `strategy_of` had raised
    settings = TierSettings(
        addresses=task.addresses.ps,
        staleness=cluster.staleness,
        fetchers=cluster.fetchers,
        wire_dtype=cluster.wire_dtype,
        rest_dtype=cluster.rest_dtype,
    )
    return Hybrid(strategy, features, settings, newest_chunks, report, host, hosts, every)


def _num_devices(cluster: Cluster) -> int:
    return cluster.devices or max(1, len(tf.config.list_physical_devices("GPU")))


def _trainers(cluster: Cluster, task: ClusterTask | None) -> list[tuple[str, int]]:
    """Every process that trains, the chief first."""
    if task is None:
        return [("chief", 0)]
    return [(role, i) for role in cluster.trainer_roles for i in range(cluster.count(role))]


def _resolver(task: ClusterTask | None, roles: Sequence[str]) -> Any:
    assert task is not None
    addresses = {role: list(getattr(task.addresses, role)) for role in roles}
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({role: known for role, known in addresses.items() if known}),
        task_type=task.type,
        task_id=task.index,
        rpc_layer="grpc",
    )
