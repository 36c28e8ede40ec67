"""Which earlier artifacts a run is compared with, on a real metadata store."""

from __future__ import annotations

import ml_metadata as mlmd
import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd_pb2
from tfx.types.standard_artifacts import ExampleStatistics, Model, ModelBlessing

from tfx_pipeline.baselines import LatestAcceptedStatistics, LatestBlessedModel

COMPLETE, FAILED = mlmd_pb2.Execution.COMPLETE, mlmd_pb2.Execution.FAILED


@pytest.fixture
def store():
    config = mlmd_pb2.ConnectionConfig()
    config.fake_database.SetInParent()
    return mlmd.MetadataStore(config)


def _artifact(kind, id_: int, **properties: int):
    artifact = kind()
    artifact.id = id_
    for name, value in properties.items():
        artifact.set_int_custom_property(name, value)
    return artifact


def _blessed(store, candidate: int, verdicts: dict[int, int], models=(1, 2, 3, 4)) -> list[int]:
    """Ids of the baseline of `candidate`; `verdicts`: model -> blessed 0/1."""
    resolved = LatestBlessedModel().resolve_artifacts(
        store,
        {
            "candidate": [_artifact(Model, candidate)],
            "model": [_artifact(Model, m) for m in models],
            "model_blessing": [
                _artifact(ModelBlessing, 100 + m, current_model_id=m, blessed=blessed)
                for m, blessed in verdicts.items()
            ],
        },
    )
    return [model.id for model in resolved["model"]]


def test_the_baseline_is_the_newest_blessed_other_model(store):
    assert _blessed(store, 4, {1: 1, 2: 1, 3: 0}) == [2]


def test_a_blessed_candidate_is_not_its_own_baseline(store):
    """Else an unchanged rerun would be evaluated against itself, and pushed again."""
    assert _blessed(store, 4, {1: 1, 4: 1}) == [1]


def test_a_model_from_before_is_compared_with_what_was_pushed_since(store):
    assert _blessed(store, 1, {1: 1, 3: 1}) == [3]


def test_a_first_model_has_no_baseline(store):
    assert _blessed(store, 1, {}) == []
    assert _blessed(store, 1, {}, models=()) == []


def _validated(store, statistics: int, state: int, component: str) -> None:
    kind = mlmd_pb2.ExecutionType(name=f"somewhere.{component}")
    execution = mlmd_pb2.Execution(type_id=store.put_execution_type(kind), last_known_state=state)
    (id_,) = store.put_executions([execution])
    event = mlmd_pb2.Event(artifact_id=statistics, execution_id=id_, type=mlmd_pb2.Event.INPUT)
    store.put_events([event])


def _stored_statistics(store) -> int:
    kind = store.put_artifact_type(mlmd_pb2.ArtifactType(name="ExampleStatistics"))
    return store.put_artifacts([mlmd_pb2.Artifact(type_id=kind)])[0]


def test_drift_is_measured_from_the_newest_statistics_that_passed(store):
    old, passed, anomalous, unread, current = (_stored_statistics(store) for _ in range(5))
    for statistics in (old, passed, current):
        _validated(store, statistics, COMPLETE, "DataValidator")
    _validated(store, anomalous, FAILED, "DataValidator")
    _validated(store, unread, COMPLETE, "SomethingElse")

    def resolve(current_id: int) -> list[int]:
        known = [_artifact(ExampleStatistics, i) for i in (old, passed, anomalous, unread, current)]
        resolved = LatestAcceptedStatistics("DataValidator").resolve_artifacts(
            store,
            {"current": [_artifact(ExampleStatistics, current_id)], "statistics": known},
        )
        return [artifact.id for artifact in resolved["statistics"]]

    assert resolve(current) == [passed]
    assert resolve(passed) == [current]


def test_a_first_run_has_nothing_to_drift_from(store):
    only = _artifact(ExampleStatistics, _stored_statistics(store))
    resolved = LatestAcceptedStatistics("DataValidator").resolve_artifacts(
        store, {"current": [only], "statistics": [only]}
    )
    assert resolved["statistics"] == []
