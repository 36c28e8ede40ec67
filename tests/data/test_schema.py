"""The schema: it describes the instances as they are, and reads them as tensors."""

from __future__ import annotations

import pathlib

import apache_beam as beam
import pyarrow as pa
import pytest
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_bsl.coders import example_coder
from tfx_bsl.tfxio import tf_example_record

from data import instances, validation
from data.schema import schema_of, serving_feature_names
from data.spec import Spec, load_spec
from tests.data.small import event_table, small_spec, user_table

EVENTS = [
    {"user_id": "ann", "time_ms": 1, "item": 3, "tags": ["x", "y"], "price": 2.0, "click": "1",
     "click_p": 0.5, "shop": "s", "place": "home", "stars": "b", "spend": 1.0},
    {"user_id": "ann", "time_ms": 9, "item": 4, "click": "0"},
    {"user_id": "bo", "time_ms": 2, "item": 5, "tags": ["x"]},
]  # fmt: skip
USERS = [
    {"user_id": "ann", "city": "rome", "age": 30.0, "level": "gold"},
    {"user_id": "cy", "level": "tin"},
]


def batch(spec: Spec) -> pa.RecordBatch:
    return instances.build_instances(event_table(EVENTS, spec), user_table(USERS, spec), spec)


def test_it_names_every_feature_with_its_type():
    spec = small_spec()
    names = {
        pa.int64(): schema_pb2.INT,
        pa.float32(): schema_pb2.FLOAT,
        pa.binary(): schema_pb2.BYTES,
    }
    actual = {field.name: names[field.type.value_type] for field in batch(spec).schema}
    schema = schema_of(spec)
    assert {feature.name: feature.type for feature in schema.feature} == actual
    representations = schema.tensor_representation_group[""].tensor_representation
    assert set(representations) == set(actual)


@pytest.mark.parametrize("name", ["kuairand_pure", "movielens_1m", "simulator"])
def test_every_bundled_spec_has_one(name):
    features = [feature.name for feature in schema_of(load_spec(name)).feature]
    assert len(features) == len(set(features)) > 20


def test_its_own_instances_are_no_anomaly(tmp_path):
    """Also of a user without events (empty lists) and one unknown to the user table."""
    spec = small_spec()
    schema = schema_of(spec)
    found = validation.split_anomalies(statistics_of(batch(spec), schema, tmp_path), None, schema)
    assert validation.reasons(found) == []


def statistics_of(
    record_batch: pa.RecordBatch, schema: schema_pb2.Schema, folder: pathlib.Path
) -> validation.Statistics:
    path = str(folder / "statistics.pb")
    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.Create([record_batch])
            | tfdv.GenerateStatistics(tfdv.StatsOptions(schema=schema))
            | tfdv.WriteStatisticsToBinaryFile(path)
        )
    return tfdv.load_stats_binary(path)


def test_the_records_read_back_as_ragged_and_dense_tensors():
    spec = small_spec()
    records = example_coder.RecordBatchToExamplesEncoder().encode(batch(spec))
    reader = tf_example_record.TFExampleBeamRecord("test", schema=schema_of(spec))
    decoder = example_coder.ExamplesToRecordBatchDecoder(schema_of(spec).SerializeToString())
    tensors = reader.TensorAdapter().ToBatchTensors(decoder.DecodeBatch(records))
    assert tensors["user_id"].shape == (3, 1)
    assert tensors["sequence_item"].to_list() == [[3, 4], [5], []]
    assert tensors["sequence_tags"].to_list() == [[b"x", b"y"], [b"x"], []]
    assert tensors["sequence_tags_count"].to_list() == [[2, 0], [1], []]
    assert tensors["context_city"].numpy().tolist() == [[b"rome"], [b""], [b""]]
    assert tensors["target_position"].row_lengths().numpy().tolist() == [3, 0, 1]


def test_a_request_needs_no_labels_nor_splits():
    names = set(serving_feature_names(small_spec()))
    assert {"user_id", "sequence_item", "sequence_tags_count", "candidate_price"} <= names
    assert {"context_city", "target_position", "sequence_length"} <= names
    training_only = {"user_activity", "window_last", "train_length", "target_split"}
    training_only |= {"target_per_user", "label_click", "oracle_click", "label_vip"}
    assert not names & training_only


def test_a_value_outside_a_closed_vocabulary_is_an_anomaly(tmp_path):
    spec = small_spec()
    schema = schema_of(spec)
    odd = [EVENTS[0], EVENTS[1] | {"click": None}, EVENTS[2]]
    table = event_table(odd, spec)
    place = table.column_names.index("click:category")
    table = table.set_column(place, "click:category", pa.array(["1", None, "2"]))
    made = instances.build_instances(table, user_table(USERS, spec), spec)
    found = validation.split_anomalies(statistics_of(made, schema, tmp_path), None, schema)
    (reason,) = validation.reasons(found)
    assert reason.startswith("sequence_click: ") and "2" in reason
