"""DataValidator: stops the run on an anomaly, where ExampleValidator only writes it down."""

# No `from __future__ import annotations`: TFX reads this module's annotations as objects.

import json
import os

from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2
from tfx.components.example_validator import executor as example_validator
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import ExampleAnomalies, ExampleStatistics, Schema
from tfx.utils import io_utils, writer_utils

from data import validation
from data.spec import Spec, parse_spec


class DataAnomalyError(ValueError):
    """The data must not be trained on. Lists each feature and what is wrong with it."""


@component
def DataValidator(
    statistics: InputArtifact[ExampleStatistics],
    schema: InputArtifact[Schema],
    anomalies: OutputArtifact[ExampleAnomalies],
    spec: Parameter[str],
    code: Parameter[str] = "",
    previous_statistics: InputArtifact[ExampleStatistics] = None,
) -> None:
    """Validates every file split against the schema and against the last accepted run.

    Args:
      statistics: of the instances, computed with `schema`.
      schema: the spec's.
      anomalies: `SchemaDiff.pb` for each split, as ExampleValidator writes them.
      spec: the spec as JSON.
      code: hash of what runs here; TFX's cache looks at parameters, not at code.
      previous_statistics: what drift is measured from; none on a first run.

    Raises:
      DataAnomalyError: anything is wrong.
    """
    parsed = parse_spec(json.loads(spec))
    schema_proto = io_utils.SchemaReader().read(io_utils.get_only_uri_in_dir(schema.uri))
    current = _load(statistics)
    previous = _load(previous_statistics) if previous_statistics is not None else {}

    missing = validation.missing_anomalies(current.values(), previous.values(), parsed)
    found = {}
    for split, split_statistics in current.items():
        found[split] = validation.split_anomalies(
            split_statistics, previous.get(split), schema_proto
        )
        validation.add_anomalies(found[split], missing)
    _write(found, anomalies)
    if any(map(validation.reasons, found.values())):
        raise DataAnomalyError(_message(found, parsed))


def _load(artifact: ExampleStatistics) -> dict[str, statistics_pb2.DatasetFeatureStatisticsList]:
    return {
        split: stats_artifact_utils.load_statistics(artifact, split).proto()
        for split in artifact_utils.decode_split_names(artifact.split_names)
    }


def _write(found: dict[str, anomalies_pb2.Anomalies], artifact: ExampleAnomalies) -> None:
    artifact.split_names = artifact_utils.encode_split_names(list(found))
    for split, split_anomalies in found.items():
        folder = artifact_utils.get_split_uri([artifact], split)
        path = os.path.join(folder, example_validator.DEFAULT_FILE_NAME)
        writer_utils.write_anomalies(path, split_anomalies)
    blessed = {
        split: example_validator.NOT_BLESSED_VALUE
        if validation.reasons(split_anomalies)
        else example_validator.BLESSED_VALUE
        for split, split_anomalies in found.items()
    }
    artifact.set_json_value_custom_property(
        example_validator.ARTIFACT_PROPERTY_BLESSED_KEY, blessed
    )


def _message(found: dict[str, anomalies_pb2.Anomalies], spec: Spec) -> str:
    lines: dict[str, list[str]] = {}
    for split, split_anomalies in found.items():
        for line in validation.reasons(split_anomalies):
            lines.setdefault(line, []).append(split)
    listed = "\n".join(f"  {line} [{', '.join(splits)}]" for line, splits in lines.items())
    return (
        f"the data of {spec.name!r} is anomalous, so nothing is trained on it:\n{listed}\n"
        "Fix the data; or, if it is meant, the spec: the keys named above, or a channel's kind"
    )
