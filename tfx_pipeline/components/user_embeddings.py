"""UserEmbeddings: every user's embedding by the blessed model, as Parquet and as knowledge.

Bulk inference with the `embed` signature on both file splits, from each user's newest window, so
that the table has one row a user.
"""

# No `from __future__ import annotations`: TFX reads this module's annotations as objects.

import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from absl import logging
from apache_beam.utils import shared
from tensorflow.core.protobuf import saved_model_pb2
from tfx.components.util import model_utils
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact, artifact_utils
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, PushedModel
from tfx.utils import io_utils, path_utils

from serving import errors
from serving.knowledge import MappedStore
from serving.knowledge import parquet as knowledge_parquet

SIGNATURE = "embed"
FILE_PREFIX = "embeddings"
MAX_BATCH = 256


class EmbeddingTable(artifact.Artifact):
    """Parquet files `embeddings-*.parquet`; empty if the model wasn't blessed."""

    TYPE_NAME = "EmbeddingTable"


@component(use_beam=True)
def UserEmbeddings(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    embeddings: OutputArtifact[EmbeddingTable],
    model_blessing: InputArtifact[ModelBlessing] = None,
    pushed_model: InputArtifact[PushedModel] = None,
    destination: Parameter[str] = "",
    knowledge: Parameter[str] = "",
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Writes `user_id` string, `embedding` fixed_size_list<float>[D], `model_version` string.

    Args:
      examples: raw instances; all splits are read, windows with `window_last` = 1 embedded.
      model: with the signature `embed`.
      embeddings: the table.
      model_blessing: if given and not blessed, nothing is written.
      pushed_model: names the version the servers answer with; else it is the model's own run.
      destination: a local directory that gets a copy as `<model_version>/`, complete or not at
        all.
      knowledge: the folder of a knowledge store (serving/knowledge), whose newest version it
        becomes.

    Raises:
      ValueError: the model has no `embed` signature with an `embedding` [B, D] of known D, or the
        knowledge store doesn't take the version.
    """
    if model_blessing is not None and not model_utils.is_model_blessed(model_blessing):
        logging.warning("UserEmbeddings: the model isn't blessed; no embeddings are written")
        return
    path = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
    version = _version(model, pushed_model)
    patterns = [
        io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split))
        for split in artifact_utils.decode_split_names(examples.split_names)
    ]
    with beam_pipeline as pipeline:
        embed_instances(pipeline, patterns, path, version, embeddings.uri)
    if destination:
        publish(embeddings.uri, pathlib.Path(destination), version)
    if knowledge:
        publish_knowledge(embeddings.uri, knowledge, version)


def embed_instances(
    pipeline: beam.Pipeline, patterns: Sequence[str], path: str, version: str, folder: str
) -> None:
    """Adds the bulk inference to a pipeline.

    Args:
      patterns: of TFRecord files of raw instances.
      path: the SavedModel.
      version: what the table calls it.
      folder: where the Parquet files go.

    Raises:
      ValueError: the model has no `embed` signature with an `embedding` [B, D] of known D.
    """
    schema = table_schema(embedding_dim(path))
    _ = (
        [
            pipeline | f"Read[{number}]" >> beam.io.ReadFromTFRecord(pattern)
            for number, pattern in enumerate(patterns)
        ]
        | beam.Flatten(pipeline=pipeline)
        | beam.BatchElements(min_batch_size=32, max_batch_size=MAX_BATCH)
        | "Embed" >> beam.ParDo(_Embed(path, version, schema))
        | beam.io.WriteToParquetBatched(
            os.path.join(folder, FILE_PREFIX), schema, codec="snappy", file_name_suffix=".parquet"
        )
    )


def table_schema(dim: int) -> pa.Schema:
    """The table's columns for embeddings of `dim` floats."""
    return pa.schema(
        [
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.field("item", pa.float32()), dim), nullable=False),
            pa.field("model_version", pa.string(), nullable=False),
        ]
    )


def embedding_dim(path: str) -> int:
    """D of the model's `embed` signature. Raises `ValueError` if it hasn't one."""
    with fileio.open(os.path.join(path, "saved_model.pb"), "rb") as file:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read())
    signatures = saved_model.meta_graphs[0].signature_def
    if SIGNATURE not in signatures or "embedding" not in signatures[SIGNATURE].outputs:
        raise ValueError(f"{path}: no signature {SIGNATURE!r} with an output 'embedding'")
    dims = signatures[SIGNATURE].outputs["embedding"].tensor_shape.dim
    if len(dims) != 2 or dims[1].size < 1:
        raise ValueError(f"{path}: {SIGNATURE!r} must give [B, D] with a static D")
    return dims[1].size


def _version(model: Model, pushed: PushedModel | None) -> str:
    name = pushed.get_string_custom_property("pushed_version") if pushed is not None else ""
    return name or os.path.basename(model.uri.rstrip("/"))


class _Embed(beam.DoFn):
    """Serialized instances, in batches, to Arrow tables; one model a process."""

    def __init__(self, path: str, version: str, schema: pa.Schema):
        self._path = path
        self._version = version
        self._schema = schema
        self._handle = shared.Shared()

    def setup(self) -> None:
        self._model = self._handle.acquire(lambda: tf.saved_model.load(self._path))
        self._embed = self._model.signatures[SIGNATURE]

    def process(self, batch: list[bytes]) -> Iterator[pa.Table]:
        features = {"window_last": tf.io.FixedLenFeature([], tf.int64)}
        last = tf.io.parse_example(batch, features)["window_last"].numpy() == 1
        if not last.any():
            return
        newest = np.array(batch, object)[last]
        outputs = self._embed(examples=tf.constant(newest))
        flat = pa.array(outputs["embedding"].numpy().ravel())
        dim = self._schema.field("embedding").type.list_size
        columns = [
            pa.array(outputs["user_id"].numpy(), pa.binary()).cast(pa.string()),
            pa.FixedSizeListArray.from_arrays(flat, dim),
            pa.array([self._version] * len(newest)),
        ]
        yield pa.Table.from_arrays(columns, schema=self._schema)


def publish(uri: str, destination: pathlib.Path, version: str) -> int:
    """Copies a table to `destination/version`, complete or not at all. Returns its rows."""
    staging = destination / f".{version}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(uri, staging)
    target = destination / version
    if target.exists():
        shutil.rmtree(target)
    staging.rename(target)
    files = sorted(target.glob(f"{FILE_PREFIX}-*.parquet"))
    rows = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    logging.info("UserEmbeddings: %d users in %s", rows, target)
    return rows


def publish_knowledge(uri: str, store: str, version: str) -> None:
    """Makes a table a version of a knowledge store. What is published already stays as it is.

    Raises:
      ValueError: the store doesn't take it; the message says why.
    """
    try:
        mapped = MappedStore(store)
        if int(version) in mapped.versions():
            logging.info("UserEmbeddings: version %s is in %s already", version, store)
            return
        mapped.publish(int(version), knowledge_parquet.read(uri))
    except errors.ServingError as error:
        raise ValueError(f"{store}: {error.message}") from None
