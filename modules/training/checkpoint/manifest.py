"""manifest.json: what is in a checkpoint, written last, with a checksum of itself."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any, Literal

import google_crc32c
from pydantic import BaseModel, ConfigDict, ValidationError

from modules.training.checkpoint.checksum import File
from modules.training.checkpoint.error import DamagedError

NAME = "manifest.json"
FORMAT: Literal[1] = 1


class Table(BaseModel):
    """Touched rows of a large table.

    `chunks` are prefixes of tensor bundles below the checkpoint's folder, of which no two hold
    the same row; `shards` is how many shards the table had when it was saved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    num_rows: int
    dim: int
    shards: int
    chunks: list[str]


class Manifest(BaseModel):
    """`parent` is the step whose rows these are the changes to; None: since initialization."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = FORMAT
    run: str
    step: int
    parent: int | None
    created: str
    placement: str
    files: dict[str, File]
    tables: dict[str, Table]


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes `manifest.json` and makes it durable.

    Raises:
      OSError: it can't be written.
    """
    fields = manifest.model_dump(mode="json")
    text = json.dumps(fields | {"crc32c": _checksum(fields)}, indent=1)
    with (folder / NAME).open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of a checkpoint's folder.

    Raises:
      DamagedError: there is none, or it is damaged or of an unknown format.
      OSError: it can't be read.
    """
    try:
        fields = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"{NAME} is missing") from None
    except ValueError as error:
        raise DamagedError(f"{NAME} is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DamagedError(f"{NAME} is not a JSON object")
    if fields.get("format") != FORMAT:
        raise DamagedError(
            f"{NAME} has format {fields.get('format')!r}, but this program reads {FORMAT}"
        )
    if fields.pop("crc32c", None) != _checksum(fields):
        raise DamagedError(f"{NAME} doesn't have its own checksum")
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        raise DamagedError(f"{NAME} is not valid: {error}") from None


def _checksum(fields: dict[str, Any]) -> int:
    return google_crc32c.value(json.dumps(fields, sort_keys=True).encode())
