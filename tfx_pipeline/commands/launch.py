"""Starts a local cluster of real processes, shows their state, and takes it down again.

With --command, that is the chief (and every further trainer), with TF_CONFIG set; a process that
dies is started again, and the cluster ends with the chief. Without, the servers stay up until
Ctrl-C, and a trainer is started by hand with the variables that are printed.

Exit code: the chief's; 1 if a process died too often, 2 asked for wrongly.
"""

from __future__ import annotations

import datetime
import shlex
import sys
import time

import rich.console
import rich.live
import rich.table
from absl import flags

from modules.training.cluster.config import ROLES, Cluster, ClusterError, load_cluster
from modules.training.cluster.events import CLUSTER_EVENTS, Event
from modules.training.cluster.process import ProcessInfo
from modules.training.cluster.supervisor import (
    ClusterFailed,
    Supervisor,
    stopped_by_signals,
)

FLAGS = flags.FlagValues()
flags.DEFINE_string("cluster", None, "The cluster's YAML.", flag_values=FLAGS)
flags.DEFINE_string("command", "", "The training command.", flag_values=FLAGS)
flags.DEFINE_string("output", "runs/cluster", "Folder of logs and events.", flag_values=FLAGS)

_REFRESH_SECONDS = 0.5


def main(values: flags.FlagValues) -> int:
    """Launches and waits."""
    if not values.cluster:
        raise flags.Error("--cluster: give the cluster's YAML; examples are in deploy/clusters")
    console = rich.console.Console(highlight=False, soft_wrap=True)
    try:
        cluster = load_cluster(values.cluster)
        supervisor = _supervisor(cluster, values, console)
    except ClusterError as error:
        raise flags.Error(str(error)) from None
    except OSError as error:
        raise flags.Error(f"--output={values.output}: {error}") from None
    try:
        with stopped_by_signals(supervisor), supervisor:
            if not values.command:
                console.print(_by_hand(supervisor), markup=False)
            _show(supervisor, console)
            return supervisor.wait()
    except ClusterFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        console.print(f"events: {supervisor.folder / CLUSTER_EVENTS}", markup=False)


def _supervisor(
    cluster: Cluster, values: flags.FlagValues, console: rich.console.Console
) -> Supervisor:
    command = shlex.split(values.command)
    if not command and not any(
        cluster.count(role) for role in ROLES if role not in cluster.trainer_roles
    ):
        raise ClusterError(
            f"{values.cluster}: {cluster.placement} has no servers to keep up; give --command"
        )
    return Supervisor(
        cluster,
        values.output,
        {"chief": command} if command else {},
        # In a terminal the table says it all.
        tell=None if console.is_terminal else lambda event: print(_line(event), flush=True),
    )


def _by_hand(supervisor: Supervisor) -> str:
    return (
        "The servers start. For a trainer started by hand:\n"
        f"export TF_CONFIG='{supervisor.tf_config('chief')}'\n"
        "Ctrl-C ends the cluster."
    )


def _show(supervisor: Supervisor, console: rich.console.Console) -> None:
    if not console.is_terminal:
        return
    with rich.live.Live(console=console, auto_refresh=False) as live:
        while not supervisor.ended:
            live.update(_table(supervisor.processes()), refresh=True)
            time.sleep(_REFRESH_SECONDS)
        live.update(_table(supervisor.processes()), refresh=True)


def _table(processes: list[ProcessInfo]) -> rich.table.Table:
    table = rich.table.Table(
        "process", "address", "pid", "state", "uptime", "restarts", "RSS MiB", "CPU s"
    )
    for process in processes:
        table.add_row(
            f"{process.role} {process.index}",
            process.address,
            str(process.pid or "-"),
            process.state,
            str(datetime.timedelta(seconds=int(process.uptime_seconds))),
            str(process.restarts),
            f"{process.rss_bytes / 2**20:.0f}",
            f"{process.cpu_seconds:.1f}",
        )
    return table


def _line(event: Event) -> str:
    moment = datetime.datetime.fromtimestamp(event["time"]).strftime("%H:%M:%S")
    who = f" {event['role']} {event['index']}" if "role" in event else ""
    rest = {k: v for k, v in event.items() if k not in ("time", "event", "role", "index")}
    said = ", ".join(f"{name} {value}" for name, value in rest.items())
    return f"{moment}{who} {event['event']} ({said})"
