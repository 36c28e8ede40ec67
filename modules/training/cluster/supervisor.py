"""A local cluster of real processes: started, watched, restarted, and gone when it ends.

Whatever dies comes back at the same address. Trainers that form one collective group
(`multi_worker_mirrored`, several trainers of `hybrid`) can't lose a member, so they are
restarted together, and so are a coordinator and its servers: all variables are the coordinator's.
Trainers are stopped before servers: they save what the servers hold.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from modules.training.cluster import guard
from modules.training.cluster.config import PREEMPTED, ROLES, Cluster, ClusterError, Role, tf_config
from modules.training.cluster.events import CLUSTER_EVENTS, Event, EventLog
from modules.training.cluster.held_ports import HeldPorts
from modules.training.cluster.process import Process, ProcessInfo, how_it_died, signal_name
from modules.training.cluster.server import TERMINATED, server_arguments

_POLL_SECONDS = 0.1
_LONGEST_BACKOFF_SECONDS = 30.0
_SERVER_GRACE_SECONDS = 5.0
_EXCEPTION, _USAGE_ERROR = 1, 2
_INTRA_OP = "TF_NUM_INTRAOP_THREADS"
"""What TensorFlow goes by where its configuration (`threads.intra_op`) has no number."""
_MAX_FAULTS = 1
"""An exception may be another process's doing, but hardly twice: that one dies by a signal, and
a trainer that loses it ends with `LOST`."""


class ClusterFailed(RuntimeError):
    """A process died more often than `max_restarts`; the message says which, how, and its log."""


class Supervisor:
    """A running local cluster: `with Supervisor(...) as s: s.wait()`.

    Args:
      cluster: with `processes`; its addresses are chosen here.
      folder: for `cluster-events.jsonl` and `logs/<role>-<index>.log`.
      commands: by role. A worker that trains runs the chief's command unless it has its own; a
        server runs `cluster.server`. Without a chief's command no trainer is started, and the
        cluster is up until `stop`.
      environment: added to every process's.
      grace_seconds: instead of the cluster's.
      backoff_seconds: before the first restart; doubles with each, up to 30.
      tell: gets every event as it is recorded.

    Raises:
      ClusterError: the cluster's processes are elsewhere (`addresses`).
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: str | pathlib.Path,
        commands: Mapping[Role, Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        grace_seconds: float | None = None,
        backoff_seconds: float = 0.5,
        tell: Callable[[Event], None] | None = None,
    ):
        if cluster.addresses is not None:
            raise ClusterError(
                "addresses: these processes are started elsewhere; a local cluster has"
                " 'processes: {worker: 2, ps: 2}' instead"
            )
        self.folder = pathlib.Path(folder)
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._ports = HeldPorts()
        self.cluster = cluster.at(
            {role: self._ports.addresses(cluster.count(role)) for role in ROLES}
        )
        self._grace = cluster.grace_seconds if grace_seconds is None else grace_seconds
        self._backoff = backoff_seconds
        self._events = EventLog(self.folder / CLUSTER_EVENTS, tell)
        self._mark = uuid.uuid4().hex
        self._processes = self._make(commands, dict(environment or {}))
        self._regrouping: dict[Process, float] = {}  # asked to go with its group, to be killed at
        self._stopping = False
        # What `stop` returns if the chief isn't running then; without a chief it's no failure.
        self._chief_code = TERMINATED if "chief" in commands else 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "supervisor")
        self._outcome: concurrent.futures.Future[int] = concurrent.futures.Future()

    def __enter__(self) -> Supervisor:
        self._outcome = self._thread.submit(self._run)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        concurrent.futures.wait([self._outcome])
        self._thread.shutdown()

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the chief to end (or for `stop`); returns its exit code.

        Of a chief that a signal ended it is 128 + the signal, as in a shell.

        Raises:
          ClusterFailed: restarts are exhausted. Everything is stopped by then.
          TimeoutError: `timeout` seconds passed; the cluster goes on.
        """
        try:
            return self._outcome.result(timeout)
        except concurrent.futures.TimeoutError:
            if self._outcome.done():
                raise
            raise TimeoutError(f"the cluster still runs after {timeout} s") from None

    @property
    def ended(self) -> bool:
        """Whether `wait` would return (or raise) at once."""
        return self._outcome.done()

    def stop(self) -> None:
        """Asks the cluster to stop: trainers save, then all is taken down. Returns at once."""
        self._stopping = True

    def processes(self) -> list[ProcessInfo]:
        """Every process as it is now, by role and index."""
        return [process.info() for process in self._processes]

    def tf_config(self, role: Role, index: int = 0) -> str:
        """`TF_CONFIG` of one process, for a trainer that is started by hand."""
        return tf_config(self.cluster, role, index)

    def _make(
        self, commands: Mapping[Role, Sequence[str]], environment: dict[str, str]
    ) -> list[Process]:
        inherited = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
        paths = [str(guard.ROOT), inherited.get("PYTHONPATH", "")]
        shared = {
            **inherited,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TF_GRPC_REUSE_PORT": "1",  # lets a server listen on the port that we hold for it
            **environment,
            guard.MARK: self._mark,
        }
        processes = []
        for role in ROLES:
            trains = role in self.cluster.trainer_roles
            command = commands.get(role) or (commands.get("chief") if trains else None)
            if not trains and command is None:
                command = [sys.executable, *server_arguments(self.cluster), "--die_with_parent"]
            for index in range(self.cluster.count(role)):
                address = getattr(self.cluster.addresses, role)[index]
                if command is None:
                    self._ports.release(address)
                    continue
                place = {}
                if self.cluster.placement not in ("single", "mirrored"):
                    place["TF_CONFIG"] = tf_config(self.cluster, role, index)
                if role in self.cluster.device_roles and _INTRA_OP not in shared:
                    place |= self._share_of_cores()
                log = self.folder / "logs" / f"{role}-{index}.log"
                processes.append(
                    Process(role, index, address, command, {**shared, **place}, log, not trains)
                )
        return processes

    def _share_of_cores(self) -> dict[str, str]:
        """Processes that compute the model share the machine's cores: TensorFlow gives the threads
        of all of them to each, which then wait for one another within every operation."""
        sharing = sum(map(self.cluster.count, self.cluster.device_roles))
        if sharing == 1:
            return {}
        return {_INTRA_OP: str(max(1, len(os.sched_getaffinity(0)) // sharing))}

    def _goes_along(self, process: Process) -> bool:
        """Whether it is restarted whenever a trainer is."""
        return self._trains(process) or self.cluster.placement == "parameter_server"

    def _trains(self, process: Process) -> bool:
        return process.role in self.cluster.trainer_roles

    def _run(self) -> int:
        guardian = guard.start_guard(self._mark)
        try:
            return self._watch()
        finally:
            for process in self._processes:
                process.send(signal.SIGKILL)
            self._await_end_of(self._processes, _SERVER_GRACE_SECONDS)
            guard.kill_marked(self._mark)
            guardian.communicate()
            self._ports.close()
            self._events.flush()

    def _watch(self) -> int:
        while not self._stopping:
            for process in self._processes:
                code = process.death()
                if code is None:
                    continue
                if process.role == "chief" and code == 0:
                    process.state = "done"
                    self._record("done", process)
                    self._let_finish()
                    self._shut_down("the chief is done")
                    return 0
                self._after_death(process, code)
            self._kill_overdue()
            self._start_due()
            for process in self._processes:
                if process.became_ready():
                    self._record("ready", process, seconds_out=_seconds_since(process.died_at))
            self._events.flush()
            time.sleep(_POLL_SECONDS)
        return self._shut_down("asked to")

    def _after_death(self, process: Process, code: int) -> None:
        with_group = self._regrouping.pop(process, None) is not None
        if self._trains(process) and code == 0 and not with_group:
            process.state = "done"
            self._record("done", process)
            return
        preempted = self._trains(process) and code == PREEMPTED
        self._record("preempted" if preempted else "death", process, **_death_fields(code))
        if not with_group:
            self._count_fault(process, code)
        if self._trains(process) and not with_group:
            if code == _USAGE_ERROR:
                self._fail(process, code, "(it was asked for wrongly)")
            if process.faults > _MAX_FAULTS:
                self._fail(process, code, f"{process.faults} times in a row")
        if not preempted and not with_group:
            self._count_restart(process, code)
        self._schedule(process)
        if self._trains(process) and not with_group:
            self._take_along(process, preempted)

    def _count_fault(self, process: Process, code: int) -> None:
        """An exception after a long life is a new one."""
        before = process.faults if process.lived < self.cluster.restart_window else 0
        process.faults = before + 1 if code == _EXCEPTION else 0

    def _count_restart(self, process: Process, code: int) -> None:
        now = time.monotonic()
        while process.recent and now - process.recent[0] > self.cluster.restart_window:
            process.recent.popleft()
        if len(process.recent) >= self.cluster.max_restarts:
            self._fail(
                process,
                code,
                f"after {len(process.recent)} restarts (max_restarts: {self.cluster.max_restarts})",
            )
        process.recent.append(now)

    def _fail(self, process: Process, code: int, why: str) -> NoReturn:
        message = (
            f"{process.name} {how_it_died(code)} {why}; the cluster is stopped."
            f" The end of {process.log}:\n{process.last_lines()}"
        )
        process.state = "stopped"
        self._record("failed", process, **_death_fields(code))
        self._shut_down(f"{process.name} failed")
        raise ClusterFailed(message)

    def _schedule(self, process: Process) -> None:
        process.state = "waiting"
        doubled = self._backoff * 2 ** max(0, len(process.recent) - 1)
        process.next_start = time.monotonic() + min(doubled, _LONGEST_BACKOFF_SECONDS)

    def _take_along(self, process: Process, preempted: bool) -> None:
        # After a crash the others hang in a collective: nothing to save. After a pre-emption
        # they are saving too, and a second SIGTERM would end that. A coordinator's servers would
        # keep its variables for ten minutes beside those that the next one makes.
        for other in self._processes:
            if other is process or not self._goes_along(other):
                continue
            if other.alive:
                if not preempted:
                    other.send(signal.SIGKILL)
                elif not self._trains(other):
                    other.send(signal.SIGTERM)
                self._regrouping[other] = time.monotonic() + self._grace
            else:
                self._schedule(other)

    def _kill_overdue(self) -> None:
        for process, deadline in self._regrouping.items():
            if time.monotonic() > deadline:
                process.send(signal.SIGKILL)

    def _start_due(self) -> None:
        for process in self._processes:
            held_back = self._goes_along(process) and self._regrouping
            if process.state != "waiting" or held_back or time.monotonic() < process.next_start:
                continue
            again = process.died_at is not None
            try:
                process.start()
            except OSError as error:
                self._shut_down(f"{process.name} can't be started")
                raise ClusterFailed(f"{process.name} can't be started: {error}") from None
            process.restarts += again
            out = _seconds_since(process.died_at) if self._trains(process) else None
            self._record("restart" if again else "start", process, seconds_out=out)

    def _let_finish(self) -> None:
        # Trainers beside the chief end by themselves once it has.
        self._await_end_of([p for p in self._processes if self._trains(p)], self._grace)

    def _shut_down(self, reason: str) -> int:
        """Trainers first, then servers. Returns the chief's exit code."""
        self._events.add("stop", reason=reason)
        for trainers, grace in ((True, self._grace), (False, _SERVER_GRACE_SECONDS)):
            going = [p for p in self._processes if self._trains(p) == trainers and p.alive]
            for number in (signal.SIGTERM, signal.SIGKILL):
                for process in going:
                    process.send(number)
                self._await_end_of(going, grace)
        for process in self._processes:
            if process.state != "done":
                process.state = "stopped"
        return self._chief_code

    def _await_end_of(self, processes: list[Process], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            for process in self._processes:
                code = process.death()
                if code is not None:
                    process.state = "done" if code == 0 else "stopped"
                    self._record("end", process, **_death_fields(code))
                    if process.role == "chief":
                        self._chief_code = code if code >= 0 else 128 - code
            if not any(p.alive for p in processes) or time.monotonic() > deadline:
                return
            time.sleep(_POLL_SECONDS)

    def _record(self, event: str, process: Process, **fields: object) -> None:
        self._events.add(
            event,
            role=process.role,
            index=process.index,
            pid=process.pid,
            restarts=process.restarts,
            **fields,
        )


@contextlib.contextmanager
def stopped_by_signals(supervisor: Supervisor) -> Iterator[None]:
    """SIGTERM and SIGINT to this process stop the cluster as they should: saving first."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {n: signal.signal(n, lambda *_: supervisor.stop()) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seconds_since(moment: float | None) -> float | None:
    return None if moment is None else round(time.monotonic() - moment, 3)


def _death_fields(code: int) -> dict[str, object]:
    return {"exit_code": code} if code >= 0 else {"signal": signal_name(code)}
