"""The data nodes as a real TFX run: artifacts, cache, and what stops them."""

from __future__ import annotations

import datetime
import json
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2
from tfx.components.statistics_gen.component import StatisticsGen
from tfx.dsl.components.common.resolver import Resolver
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline
from tfx.types.channel import Channel
from tfx.types.standard_artifacts import ExampleStatistics

from data import sources
from data.simulator import writing
from data.spec import Spec, load_spec, parse_spec
from tfx_pipeline import baselines
from tfx_pipeline.components.data_validator import DataAnomalyError, DataValidator
from tfx_pipeline.components.sequence_example_gen import SequenceExampleGen
from tfx_pipeline.components.spec_schema import SpecSchema

SPEC = load_spec("simulator")


def run(root: pathlib.Path, data: pathlib.Path, spec: Spec = SPEC) -> None:
    text = spec.model_dump_json()
    ingest = SequenceExampleGen(
        spec=text,
        data_root=str(data),
        dead_letter_dir=str(root / "dead"),
        input_fingerprint=sources.fingerprint(spec, str(data)),
    )
    schema = SpecSchema(spec=text)
    statistics = StatisticsGen(examples=ingest.outputs["examples"], schema=schema.outputs["schema"])
    accepted = Resolver(
        strategy_class=baselines.LatestAcceptedStatistics,
        config={"validator": "DataValidator"},
        current=statistics.outputs["statistics"],
        statistics=Channel(type=ExampleStatistics),
    ).with_id("LatestAccepted")
    validator = DataValidator(
        spec=text,
        statistics=statistics.outputs["statistics"],
        schema=schema.outputs["schema"],
        previous_statistics=accepted.outputs["statistics"],
    )
    pipeline = Pipeline(
        "data",
        str(root / "pipeline"),
        components=[ingest, schema, statistics, accepted, validator],
        enable_cache=True,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(root / "m.db")),
        beam_pipeline_args=["--direct_num_workers=1", "--direct_running_mode=in_memory"],
    )
    LocalDagRunner().run(pipeline)


def artifacts(root: pathlib.Path, type_name: str) -> list[metadata_store_pb2.Artifact]:
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(root / "m.db")
    live = metadata_store_pb2.Artifact.LIVE
    found = MetadataStore(config).get_artifacts_by_type(type_name)
    return sorted((a for a in found if a.state == live), key=lambda a: a.id)


def change(data: pathlib.Path, to: pathlib.Path, column: str, how: Callable) -> pathlib.Path:
    """A copy of the simulated data with one event column changed."""
    to.mkdir()
    pq.write_table(pq.read_table(data / "users.parquet"), to / "users.parquet")
    for path in data.glob("events-*.parquet"):
        table = pq.read_table(path)
        place = table.column_names.index(column)
        changed = how(table[column].combine_chunks())
        pq.write_table(table.set_column(place, column, changed), to / path.name)
    return to


def half_more_missing(values: pa.Array) -> pa.Array:
    """The share of nulls grows by half; from none to 5%."""
    null = values.is_null().to_numpy(zero_copy_only=False)
    share = null.mean()
    more = np.random.default_rng(0).random(len(values)) < (0.5 * share / (1 - share) or 0.05)
    return pa.array(values.to_pylist(), values.type, mask=null | more)


def as_codes(values: pa.Array) -> pa.Array:
    return values.dictionary_encode().indices.cast(pa.int64())


@pytest.fixture(scope="module")
def accepted(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """Simulated data, and the root of a run that accepted it."""
    root = tmp_path_factory.mktemp("run")
    writing.simulate(root / "data", num_users=400)
    run(root, root / "data")
    return root, root / "data"


@pytest.mark.slow
def test_a_run_leaves_examples_with_their_counts_and_split_rule(accepted):
    root, _ = accepted
    (examples,) = artifacts(root, "Examples")
    summary = json.loads(examples.custom_properties["summary"].string_value)
    assert json.loads(examples.properties["split_names"].string_value) == ["train", "eval"]
    assert json.loads(examples.custom_properties["split"].string_value)["by"] == "user"
    assert summary == json.loads((pathlib.Path(examples.uri) / "ingestion.json").read_text())
    assert summary["users"] == 400 and summary["stored_per_event"] <= 1.3
    assert (pathlib.Path(artifacts(root, "Schema")[0].uri) / "schema.pbtxt").exists()
    assert len(artifacts(root, "ExampleAnomalies")) == 1


@pytest.mark.slow
def test_the_cache_holds_until_a_file_changes(accepted, tmp_path):
    root, data = accepted
    count = len(artifacts(root, "Examples"))
    run(root, data)
    assert len(artifacts(root, "Examples")) == count
    run(root, change(data, tmp_path / "same", "location", lambda values: values))
    assert len(artifacts(root, "Examples")) == count + 1


_MORE_MISSING = {
    "location": r"sequence_location: missing values went from 1\d\.\d%",
    "merchant": "sequence_merchant: missing values went from",
    "product": r"candidate_product: missing values went from 0\.0%",
    "price": r"sequence_price: missing values went from 0\.0%",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "messages"),
    [
        (as_codes, {"device": "sequence_device: Expected data of type: BYTES but got INT"}),
        (half_more_missing, _MORE_MISSING),
    ],
)
def test_an_anomaly_stops_the_run(accepted, tmp_path, how, messages):
    """A category turned to integers; half as many more missing values in any kind of channel."""
    root, data = accepted
    before = len(artifacts(root, "ExampleAnomalies"))
    for column in messages:
        data = change(data, tmp_path / column, column, how)
    with pytest.raises(DataAnomalyError) as caught:
        run(root, data)
    for message in messages.values():
        assert re.search(message, str(caught.value)), str(caught.value)
    assert len(artifacts(root, "ExampleAnomalies")) == before


@pytest.mark.slow
def test_a_time_split_may_leave_the_file_split_train_empty(accepted, tmp_path):
    """Every user has an eval target: all instances stand in `eval`, and train from there."""
    _, data = accepted
    tables = [pq.read_table(path) for path in sorted(data.glob("events-*.parquet"))]
    newest = pa.concat_tables(tables).group_by("user_id").aggregate([("time_ms", "max")])
    at_ms = min(newest["time_ms_max"].to_pylist()) - 1
    raw = SPEC.model_dump(mode="json")
    at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.timezone.utc).isoformat()
    raw["split"] = {"by": "time", "at": at}
    raw["tasks"] = [task | {"per": "impression"} for task in raw["tasks"]][:1]
    raw["tasks"][0] |= {"label": "event", "positive": ["impression"], "oracle": None}
    run(tmp_path, data, parse_spec(raw))
    (examples,) = artifacts(tmp_path, "Examples")
    summary = json.loads(examples.custom_properties["summary"].string_value)
    assert summary["instances"]["train"] == 0 and summary["all_targets"]["train"] > 0
