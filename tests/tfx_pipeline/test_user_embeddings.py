"""UserEmbeddings by Beam, and both components in a real pipeline."""

import pathlib
import uuid

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tfx.components import Pusher
from tfx.dsl.components.common.importer import Importer
from tfx.orchestration import metadata, pipeline
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.proto import pusher_pb2
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, PushedModel

from serving.knowledge import MappedStore, lookup
from tests.tfx_pipeline import served
from tfx_pipeline.components import user_embeddings
from tfx_pipeline.components.serving_check import ServingCheck
from tfx_pipeline.components.user_embeddings import EmbeddingTable, UserEmbeddings


def splits() -> dict[str, list[bytes]]:
    """700 users over both splits; every seventh has an older window too, in the other split."""
    made = {"train": [], "eval": []}
    for i in range(700):
        ours, other = ("train", "eval") if i % 5 else ("eval", "train")
        made[ours].append(served.instance(f"u{i}", [i], targets=1))
        if i % 7 == 0:
            made[other].append(served.instance(f"u{i}", [9999], targets=1, last=0))
    return made


def check_table(folder: pathlib.Path, version: str) -> None:
    files = sorted(folder.glob("embeddings-*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    assert table.schema.equals(user_embeddings.table_schema(4))
    rows = {row["user_id"]: row["embedding"] for row in table.to_pylist()}
    assert len(rows) == table.num_rows == 700
    got = np.array([rows[f"u{i}"] for i in range(700)])
    items = np.arange(700)
    expected = np.stack([items, np.ones(700), -items, 2 * items], axis=1) / 1000
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert set(table["model_version"].to_pylist()) == {version}


def embed(tmp_path, instances, **inputs) -> pathlib.Path:
    table = EmbeddingTable()
    table.uri = str(tmp_path / "table")
    UserEmbeddings.test_call(
        **{
            "examples": served.write_examples(tmp_path / "examples", instances),
            "model": served.write_model(tmp_path / "model" / "17"),
            "embeddings": table,
            "beam_pipeline": beam.Pipeline(),
            **inputs,
        }
    )
    return tmp_path / "table"


def test_one_row_a_user_from_the_newest_window(tmp_path):
    check_table(embed(tmp_path, splits()), version="17")


def test_published_whole_under_the_pushed_version(tmp_path):
    pushed = PushedModel()
    pushed.set_string_custom_property("pushed_version", "1700000000")
    destination = tmp_path / "embeddings"
    stale = destination / "1700000000"
    stale.mkdir(parents=True)
    (stale / "embeddings-00007-of-00008.parquet").touch()
    embed(tmp_path, splits(), pushed_model=pushed, destination=str(destination))
    check_table(destination / "1700000000", version="1700000000")
    assert [path.name for path in destination.iterdir()] == ["1700000000"]


def test_published_as_knowledge(tmp_path):
    """A second run of the same version finds it there; a newer one is another version."""
    for version in ("1700000000", "1700000000", "1700000001"):
        pushed = PushedModel()
        pushed.set_string_custom_property("pushed_version", version)
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        embed(folder, splits(), pushed_model=pushed, knowledge=str(tmp_path / "knowledge"))
    store = MappedStore(str(tmp_path / "knowledge"))
    assert store.versions() == (1700000000, 1700000001)
    answer = lookup(store, users=["u3", "nobody"], version=1700000000)
    assert answer.found["user"].tolist() == [True, False]
    np.testing.assert_allclose(answer.vectors["user"][0], np.float32([3, 1, -3, 6]) / 1000)


def test_an_unblessed_model_writes_nothing(tmp_path):
    blessing = ModelBlessing()
    blessing.set_int_custom_property("blessed", 0)
    folder = embed(tmp_path, {"eval": []}, model_blessing=blessing)
    assert not folder.exists()


def test_instances_without_the_newest_window_mark_are_refused(tmp_path):
    from serving.client import example

    with pytest.raises(Exception, match="window_last"):
        embed(tmp_path, {"eval": [example({"user_id": "u", "sequence_item": [1]})]})


def test_a_model_without_embed_is_refused(tmp_path):
    model = Model()
    model.uri = str(tmp_path / "model")
    tf.saved_model.save(tf.Module(), str(tmp_path / "model" / "Format-Serving"))
    with pytest.raises(ValueError, match="no signature 'embed'"):
        embed(tmp_path / "run", {"eval": []}, model=model)


def run_pipeline(root: pathlib.Path, scale: float) -> None:
    """ServingCheck -> Pusher -> UserEmbeddings, by TFX's own runner."""
    uris = {
        Examples: served.write_examples(root / "examples", splits()),
        Model: served.write_model(root / "model" / "1", scale),
    }
    examples, model = (
        Importer(
            source_uri=artifact.uri,
            artifact_type=kind,
            properties={"split_names": '["train", "eval"]'} if kind is Examples else None,
        ).with_id(kind.TYPE_NAME)
        for kind, artifact in uris.items()
    )
    (root / "blessing").mkdir()
    blessed = Importer(
        source_uri=str(root / "blessing"),
        artifact_type=ModelBlessing,
        custom_properties={"blessed": 1},
    ).with_id("blessing")
    check = ServingCheck(
        model=model.outputs["result"],
        examples=examples.outputs["result"],
        spec=served.SPEC.model_dump_json(),
    )
    pusher = Pusher(
        model=model.outputs["result"],
        model_blessing=blessed.outputs["result"],
        infra_blessing=check.outputs["blessing"],
        push_destination=pusher_pb2.PushDestination(
            filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(root / "serving"))
        ),
    )
    embeddings = UserEmbeddings(
        examples=examples.outputs["result"],
        model=model.outputs["result"],
        model_blessing=blessed.outputs["result"],
        pushed_model=pusher.outputs["pushed_model"],
        destination=str(root / "embeddings"),
    )
    LocalDagRunner().run(
        pipeline.Pipeline(
            pipeline_name="small",
            pipeline_root=str(root / "pipeline"),
            components=[examples, model, blessed, check, pusher, embeddings],
            metadata_connection_config=metadata.sqlite_metadata_connection_config(
                str(root / "metadata.sqlite")
            ),
            beam_pipeline_args=["--direct_num_workers=1", "--direct_running_mode=in_memory"],
        )
    )


def test_in_a_pipeline(tmp_path):
    run_pipeline(tmp_path, scale=1.0)
    (version,) = (path.name for path in (tmp_path / "serving").iterdir())
    check_table(tmp_path / "embeddings" / version, version)


def test_in_a_pipeline_a_failing_model_stops_the_push(tmp_path):
    with pytest.raises(RuntimeError, match="isn't finite"):
        run_pipeline(tmp_path, scale=float("nan"))
    assert not (tmp_path / "serving").exists()
    assert not (tmp_path / "embeddings").exists()
