"""Reads the pipeline's exports (`runs/<spec>/embeddings/<version>/`) chunk by chunk."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from serving.errors import invalid
from serving.knowledge.store import Rows, item_rows, user_category_rows, user_rows

CHUNK = 20_000
"""Rows read at once."""

_ID_COLUMNS = {("user_id",), ("item_id",), ("user_id", "category")}


def version_of(folder: str | pathlib.Path) -> int:
    """The version an export says it is: its files' `model_version`, else the folder's name.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, no files, or no positive integer.
    """
    first = _open(_files(folder)[0])
    name = pathlib.Path(folder).resolve().name
    if "model_version" in first.schema_arrow.names and first.metadata.num_rows:
        batch = next(first.iter_batches(1, columns=["model_version"]))
        name = batch.column(0)[0].as_py() or name
    if not (name.isascii() and name.isdigit()):
        raise invalid(f"{folder}: its version is {name!r}, not a number; give one by --version")
    return int(name)


def read(folder: str | pathlib.Path) -> Iterator[Rows]:
    """Yields the rows of all `*.parquet` files of a folder, or of one file.

    The columns say what they are: `user_id` string (K_u), `item_id` string (K_i), or `user_id`
    and `category` (K_uc); with `embedding` fixed_size_list<float>[D] and, if there,
    `model_version` string, one in all rows.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, naming the file.
    """
    versions: set[str] = set()
    for path in _files(folder):
        file = _open(path)
        there = [c for c in ("user_id", "item_id", "category") if c in file.schema_arrow.names]
        if tuple(there) not in _ID_COLUMNS or "embedding" not in file.schema_arrow.names:
            raise invalid(
                f"{path}: needs the column embedding with user_id, item_id, or user_id and"
                f" category; it has {', '.join(file.schema_arrow.names)}"
            )
        columns = [*there, "embedding"]
        columns += [c for c in ("model_version",) if c in file.schema_arrow.names]
        for batch in file.iter_batches(CHUNK, columns=columns):
            yield _rows(batch, there, path)
            if "model_version" in columns:
                versions.update(batch.column("model_version").unique().to_pylist())
            if len(versions) > 1:
                raise invalid(f"{path}: rows of several model versions: {sorted(versions)}")


def _files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    folder = pathlib.Path(folder)
    files = [folder] if folder.is_file() else sorted(folder.glob("*.parquet"))
    if not files:
        raise invalid(f"{folder}: no *.parquet file there")
    return files


def _open(path: pathlib.Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise invalid(f"{path}: no Parquet file: {error}") from None


def _rows(batch: pa.RecordBatch, id_columns: list[str], path: pathlib.Path) -> Rows:
    for name in (*id_columns, "embedding"):
        if batch.column(name).null_count:
            raise invalid(f"{path}: a null in the column {name}")
    embedding = batch.column("embedding")
    if not pa.types.is_fixed_size_list(embedding.type):
        raise invalid(f"{path}: embedding is {embedding.type}, not fixed_size_list<float>[D]")
    vectors = embedding.flatten().to_numpy().reshape(batch.num_rows, embedding.type.list_size)
    if not np.isfinite(vectors).all():
        raise invalid(f"{path}: an embedding isn't finite")
    ids = {name: batch.column(name).to_pylist() for name in id_columns}
    if "item_id" in ids:
        return item_rows(ids["item_id"], vectors)
    if "category" in ids:
        return user_category_rows(ids["user_id"], ids["category"], vectors)
    return user_rows(ids["user_id"], vectors)
