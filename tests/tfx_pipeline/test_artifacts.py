"""What a run left, read from a real metadata store: also of a run that broke off."""

from __future__ import annotations

import pathlib

import ml_metadata as mlmd
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd_pb2

from tfx_pipeline.artifacts import Artifacts, NoRunError

NODES = {"SequenceExampleGen": "COMPLETE", "Transform": "CACHED", "Finetune": "FAILED"}
"""What the run got to, and how."""


@pytest.fixture
def metadata(tmp_path) -> pathlib.Path:
    path = tmp_path / "metadata.sqlite"
    config = mlmd_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    config.sqlite.connection_mode = mlmd_pb2.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    store = mlmd.MetadataStore(config)
    kinds = {
        kind: store.put_context_type(mlmd_pb2.ContextType(name=kind))
        for kind in ("pipeline_run", "node")
    }
    made = store.put_artifact_type(mlmd_pb2.ArtifactType(name="Made"))
    (run,) = store.put_contexts([mlmd_pb2.Context(type_id=kinds["pipeline_run"], name="run")])
    for name, state in NODES.items():
        kind = store.put_execution_type(mlmd_pb2.ExecutionType(name=name))
        execution = mlmd_pb2.Execution(
            type_id=kind, last_known_state=mlmd_pb2.Execution.State.Value(state)
        )
        event = mlmd_pb2.Event(type=mlmd_pb2.Event.OUTPUT)
        event.path.steps.add(key="result")
        artifact = mlmd_pb2.Artifact(type_id=made, uri=f"/{name}")
        node = mlmd_pb2.Context(type_id=kinds["node"], name=f"pipeline.{name}")
        known = mlmd_pb2.Context(id=run, type_id=kinds["pipeline_run"], name="run")
        store.put_execution(execution, [(artifact, event)], [node, known])
    return path


@pytest.mark.parametrize("node", ["SequenceExampleGen", "Transform"])
def test_a_finished_node_gives_its_output(metadata, node):
    assert Artifacts(metadata).newest(node, "result").uri == f"/{node}"


@pytest.mark.parametrize("node", ["Finetune", "Evaluator"])
def test_a_node_that_failed_or_never_started_is_named(metadata, node):
    with pytest.raises(NoRunError, match=f"{node} has not finished in this run; run it again"):
        Artifacts(metadata).newest(node, "result")


def test_the_nodes_stand_in_their_order_with_their_states(metadata):
    states = {time.name: time.state for time in Artifacts(metadata).node_times()}
    assert list(states) == list(NODES)
    assert list(states.values()) == ["done", "cached", "FAILED"]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(NoRunError, match=f"{tmp_path}: no run here"):
        Artifacts(tmp_path / "metadata.sqlite")
