"""Resolver strategies: which earlier run a new one is compared with.

Both leave out what this run made itself. So an unchanged rerun resolves to what it resolved to
before, finds everything in the cache and pushes nothing twice.
"""

from __future__ import annotations

import ml_metadata as mlmd
from ml_metadata.proto import metadata_store_pb2 as mlmd_pb2
from tfx import types
from tfx.components.evaluator import constants
from tfx.dsl.components.common.resolver import ResolverStrategy

Artifacts = dict[str, list[types.Artifact]]

_FINISHED = (mlmd_pb2.Execution.COMPLETE, mlmd_pb2.Execution.CACHED)


class LatestBlessedModel(ResolverStrategy):
    """Of `model`, the newest that a ModelBlessing in `model_blessing` blessed, not `candidate`."""

    def resolve_artifacts(self, store: mlmd.MetadataStore, input_dict: Artifacts) -> Artifacts:
        own = {artifact.id for artifact in input_dict["candidate"]}
        blessed = {
            blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY)
            for blessing in input_dict["model_blessing"]
            if blessing.get_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY)
        }
        models = [m for m in input_dict["model"] if m.id in blessed - own]
        return input_dict | {"model": _newest(models), "model_blessing": []}


class LatestAcceptedStatistics(ResolverStrategy):
    """Of `statistics`, the newest that passed its validation, not `current`.

    A validation that finds anomalies fails its node, so statistics passed where they are an
    input of a finished execution of a component `validator`.
    """

    def __init__(self, validator: str):
        self._validator = validator

    def resolve_artifacts(self, store: mlmd.MetadataStore, input_dict: Artifacts) -> Artifacts:
        own = {artifact.id for artifact in input_dict["current"]}
        candidates = {a.id: a for a in input_dict["statistics"] if a.id not in own}
        accepted = _inputs_of_finished(store, self._validator, candidates)
        return input_dict | {"statistics": _newest([candidates[i] for i in accepted])}


def _inputs_of_finished(
    store: mlmd.MetadataStore, component: str, artifact_ids: dict[int, types.Artifact]
) -> set[int]:
    """Those of the artifacts that a finished execution of `component` read."""
    events = [
        event
        for event in store.get_events_by_artifact_ids(list(artifact_ids))
        if event.type == mlmd_pb2.Event.INPUT
    ]
    executions = store.get_executions_by_id({event.execution_id for event in events})
    finished = {
        execution.id
        for execution in executions
        if execution.type.rsplit(".", 1)[-1] == component
        and execution.last_known_state in _FINISHED
    }
    return {event.artifact_id for event in events if event.execution_id in finished}


def _newest(artifacts: list[types.Artifact]) -> list[types.Artifact]:
    return sorted(artifacts, key=lambda artifact: artifact.id)[-1:]
