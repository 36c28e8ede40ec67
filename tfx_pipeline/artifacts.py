"""What a run's nodes did and produced, from ML Metadata."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2 as mlmd_pb2

from tfx_pipeline.report.page import NodeTime

_STATES = {
    mlmd_pb2.Execution.COMPLETE: "done",
    mlmd_pb2.Execution.CACHED: "cached",
    mlmd_pb2.Execution.FAILED: "FAILED",
}


class NoRunError(LookupError):
    """The folder holds no run, or one whose node never finished."""


class Artifacts:
    """The newest run in a folder's metadata."""

    def __init__(self, metadata: pathlib.Path):
        """Opens a run's metadata. Raises `NoRunError` if there is none."""
        if not metadata.exists():
            raise NoRunError(f"{metadata.parent}: no run here; `run --output` makes one")
        config = mlmd_pb2.ConnectionConfig()
        config.sqlite.filename_uri = str(metadata)
        config.sqlite.connection_mode = mlmd_pb2.SqliteMetadataSourceConfig.READONLY
        self._store = mlmd.MetadataStore(config)
        runs = self._store.get_contexts_by_type("pipeline_run")
        if not runs:
            raise NoRunError(f"{metadata.parent}: its run never started a node; run it again")
        newest = max(runs, key=lambda run: run.id)
        executions = self._store.get_executions_by_context(newest.id)
        self._executions = {
            self._node(execution): execution
            for execution in sorted(executions, key=lambda execution: execution.id)
        }

    def newest(self, node: str, output: str) -> mlmd_pb2.Artifact:
        """What `node` made in this run, or found in the cache.

        Raises:
          NoRunError: it has not finished, or not even started.
        """
        execution = self._executions.get(node)
        if execution is None or _STATES.get(execution.last_known_state) not in ("done", "cached"):
            raise NoRunError(f"{node} has not finished in this run; run it again")
        events = self._store.get_events_by_execution_ids([execution.id])
        (artifact_id,) = (e.artifact_id for e in events if _is_output(e, output))
        (artifact,) = self._store.get_artifacts_by_id([artifact_id])
        return artifact

    def node_times(self) -> list[NodeTime]:
        """The run's nodes in their order."""
        return [
            NodeTime(
                node,
                _STATES.get(execution.last_known_state, "unfinished"),
                (execution.last_update_time_since_epoch - execution.create_time_since_epoch) / 1e3,
            )
            for node, execution in self._executions.items()
        ]

    def _node(self, execution: mlmd_pb2.Execution) -> str:
        contexts = self._store.get_contexts_by_execution(execution.id)
        (name,) = _names_of_type(contexts, "node")
        return name.rsplit(".", 1)[-1]


def _names_of_type(contexts: Iterable[mlmd_pb2.Context], kind: str) -> list[str]:
    return [context.name for context in contexts if context.type == kind]


def _is_output(event: mlmd_pb2.Event, key: str) -> bool:
    return event.type == mlmd_pb2.Event.OUTPUT and event.path.steps[0].key == key
