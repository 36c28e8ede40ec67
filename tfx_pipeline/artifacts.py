"""What a run's nodes produced, from ML Metadata."""

from __future__ import annotations

import pathlib

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2 as mlmd_pb2

_FINISHED = (mlmd_pb2.Execution.COMPLETE, mlmd_pb2.Execution.CACHED)


class NoRunError(LookupError):
    """The folder holds no finished node of that name."""


class Artifacts:
    """The newest outputs of a pipeline's nodes."""

    def __init__(self, metadata: pathlib.Path):
        """Opens a run's metadata. Raises `NoRunError` if there is none."""
        if not metadata.exists():
            raise NoRunError(f"{metadata.parent}: no run here; start one with `run --output`")
        config = mlmd_pb2.ConnectionConfig()
        config.sqlite.filename_uri = str(metadata)
        config.sqlite.connection_mode = mlmd_pb2.SqliteMetadataSourceConfig.READONLY
        self._store = mlmd.MetadataStore(config)

    def newest(self, node: str, output: str) -> mlmd_pb2.Artifact:
        """The output that `node`'s last finished execution made, or found in the cache.

        Raises:
          NoRunError: it never finished.
        """
        contexts = [
            context
            for context in self._store.get_contexts_by_type("node")
            if context.name.rsplit(".", 1)[-1] == node
        ]
        executions = [
            execution
            for context in contexts
            for execution in self._store.get_executions_by_context(context.id)
            if execution.last_known_state in _FINISHED
        ]
        if not executions:
            raise NoRunError(f"{node} has not finished in this run")
        last = max(executions, key=lambda execution: execution.id)
        ids = [
            event.artifact_id
            for event in self._store.get_events_by_execution_ids([last.id])
            if event.type == mlmd_pb2.Event.OUTPUT and event.path.steps[0].key == output
        ]
        return self._store.get_artifacts_by_id(ids)[0]
