"""One server of a cluster: `python -m modules.training.cluster.server`, placed by `TF_CONFIG`.

It holds variables (ps) or runs the steps that a coordinator schedules (worker of
`parameter_server`). The port has no authentication: whoever reaches it runs ops in this
process. Private networks only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from modules.training.cluster.config import (
    ROLES,
    Cluster,
    ClusterError,
    ClusterTask,
    task_from_environment,
)
from modules.training.cluster.orphans import die_with_parent

MIN_INTER_OP = 4
"""With fewer threads two servers can wait for each other's ops for ever (seen on two cores)."""
TERMINATED = 128 + signal.SIGTERM
_USAGE_ERROR = 2


def server_arguments(cluster: Cluster) -> list[str]:
    """What follows `python` to run a server of this cluster."""
    arguments = ["-m", "modules.training.cluster.server"]
    if cluster.placement == "hybrid":
        arguments.append("--alone")
    if cluster.threads.intra_op:
        arguments.append(f"--intra_op={cluster.threads.intra_op}")
    if cluster.threads.inter_op:
        arguments.append(f"--inter_op={cluster.threads.inter_op}")
    return arguments


def serve(task: ClusterTask, *, alone: bool, intra_op: int, inter_op: int, linger: int) -> None:
    """Serves until SIGTERM or SIGINT, and `linger` seconds more.

    Raises:
      ClusterError: the port is taken.
    """
    # Blocked before TensorFlow starts threads, so that `sigwait` is who gets them.
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    if task.type == "ps":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # a GPU would only lose memory to it
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    every = {role: dict(enumerate(getattr(task.addresses, role))) for role in ROLES}
    known = {role: addresses for role, addresses in every.items() if addresses}
    if alone:
        known = {task.type: {task.index: task.address}}
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=intra_op,
        inter_op_parallelism_threads=max(MIN_INTER_OP, inter_op),
    )
    config.gpu_options.allow_growth = True
    try:
        server = tf.distribute.Server(
            tf.train.ClusterSpec(known), task.type, task.index, protocol="grpc", config=config
        )
    except tf.errors.UnknownError as error:
        raise ClusterError(
            f"TF_CONFIG: {task.type} {task.index} can't listen on the port of {task.address};"
            f" another process has it ({error.message})"
        ) from None
    print(f"{task.type} {task.index} ready at {task.address} ({server.target})", flush=True)
    signal.sigwait(stops)
    time.sleep(linger)
    os._exit(TERMINATED)  # not 0: Kubernetes must not take a stopped server for a finished one


def main(argv: list[str]) -> int:
    """Reads `TF_CONFIG` and serves. Returns 2 if it can't."""
    parser = argparse.ArgumentParser("modules.training.cluster.server", description=__doc__)
    parser.add_argument(
        "--alone",
        action="store_true",
        help="the server knows only itself, so that sessions never wait for other servers",
    )
    parser.add_argument("--die_with_parent", action="store_true", help="leave no orphan")
    parser.add_argument("--intra_op", type=int, default=0, help="threads of one op; 0: all cores")
    parser.add_argument("--inter_op", type=int, default=0, help=f"ops at once; >= {MIN_INTER_OP}")
    parser.add_argument(
        "--linger",
        type=int,
        default=0,
        help="seconds to go on after SIGTERM: trainers that got it too save what is here",
    )
    flags = parser.parse_args(argv)
    if flags.die_with_parent:
        die_with_parent()
    try:
        task = task_from_environment()
        if task is None:
            raise ClusterError("TF_CONFIG: not set; it says which server this is")
        if task.type == "chief":
            raise ClusterError("TF_CONFIG: a chief runs the training command, not a server")
        serve(
            task,
            alone=flags.alone,
            intra_op=flags.intra_op,
            inter_op=flags.inter_op,
            linger=flags.linger,
        )
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
