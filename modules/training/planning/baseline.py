"""What a process needs before the sizes of a model matter, measured by starting such processes.

Constants would be right on one machine and one version of TensorFlow only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping

from data.spec import Spec
from modules.training.cluster.config import Cluster, Processes, Role
from modules.training.cluster.supervisor import Supervisor
from modules.training.planning.narrow import narrow
from modules.training.planning.phase import PhaseName
from modules.training.planning.probe import Request, Seen, result_of
from modules.training.planning.size import BatchSize

_POLL_SECONDS = 0.2
_SECONDS = 600
_SMALL = BatchSize(instances=2, events=4, targets=2)
_ALONE = Cluster()
_SERVER = Cluster(placement="hybrid", processes=Processes(ps=1))


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Resident bytes.

    Attributes:
      trainer: a process that trains the narrowed model: libraries, graphs, thread pools.
      graph: of that, what came after the imports.
      server: a parameter server that holds nothing.
    """

    trainer: int
    graph: int
    server: int


def measure(spec: Spec, name: PhaseName, rows: Mapping[str, int]) -> Baselines:
    """Trains the narrowed model in a process of its own, and starts a server; about 20 s.

    Raises:
      ClusterFailed: one of them died.
      TimeoutError: the trainer doesn't come to an end.
    """
    narrowed, few = narrow(spec, rows)
    request = request_of(narrowed, name, few, _SMALL)
    with tempfile.TemporaryDirectory() as folder, Running(_SERVER, folder, None) as servers:
        with Running(request.cluster, pathlib.Path(folder, "trainer"), request) as trainer:
            seen = trainer.seen()
        server = servers.resident("ps")[0]
    return Baselines(seen.resident_bytes, seen.resident_bytes - seen.imported_bytes, server)


def request_of(
    spec: Spec,
    name: PhaseName,
    rows: Mapping[str, int],
    size: BatchSize,
    cluster: Cluster = _ALONE,
) -> Request:
    raw = json.loads(spec.model_dump_json())
    return Request(spec=raw, phase=name, rows=dict(rows), size=size, cluster=cluster)


class Running:
    """A probe in its cluster, or servers alone; ends with the context."""

    def __init__(self, cluster: Cluster, folder: str | pathlib.Path, request: Request | None):
        self._path = pathlib.Path(folder) / "probe.json"
        commands: dict[Role, list[str]] = {}
        if request is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(request.model_dump_json())
            probe = "modules.training.planning.probe"
            commands["chief"] = [sys.executable, "-m", probe, f"--request={self._path}"]
        root = str(pathlib.Path(__file__).resolve().parents[3])
        found = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([root, found]) if found else root
        # A worker that computes needs no chief's command of its own; nothing is restarted.
        once = cluster.model_copy(update={"max_restarts": 0})
        self.supervisor = Supervisor(
            once, folder, commands, environment={"PYTHONPATH": path}, grace_seconds=5.0
        )

    def __enter__(self) -> Running:
        self.supervisor.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.supervisor.__exit__(*error)

    def seen(self) -> Seen:
        """What the probe saw, once it is done. Raises ClusterFailed, TimeoutError."""
        deadline = time.monotonic() + _SECONDS
        result = result_of(self._path)
        while not result.exists():
            if self.supervisor.ended:
                self.supervisor.wait()
                raise RuntimeError(f"{self.supervisor.folder}: the probe ended without a result")
            if time.monotonic() > deadline:
                raise TimeoutError(f"the probe isn't done after {_SECONDS} s")
            time.sleep(_POLL_SECONDS)
        return Seen.model_validate_json(result.read_text())

    def resident(self, role: str) -> list[int]:
        """Bytes of every process of a role, once they serve."""
        deadline = time.monotonic() + _SECONDS
        while True:
            of_role = [p for p in self.supervisor.processes() if p.role == role]
            if all(p.state == "running" for p in of_role):
                return [p.rss_bytes for p in of_role]
            if self.supervisor.ended or time.monotonic() > deadline:
                raise TimeoutError(f"{role}: not up; see {self.supervisor.folder}/logs")
            time.sleep(_POLL_SECONDS)
