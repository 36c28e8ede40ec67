"""One file a format. A source finds its files and reads them as chunks of raw rows.

A source module has two functions, called by format name through this registry:

- `find(spec, data_root) -> tuple[File, ...]`: the input files. Raises `SourceError` for
  none, or for a file without a column the spec needs.
- `read(file, spec) -> Iterator[Chunk]`: the file's rows, in order, without malformed ones.
  Raises `SourceError` for a file that can't be read to its end.

Casting, checks of values, labels and dead letters are the same for all formats:
`data/events.py`. What a source hands over is in `data/columns.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pyarrow as pa

from data.columns import Chunk, File, SourceError
from data.sources import kuairand, movielens, tabular
from data.spec import Spec

FORMATS = {"kuairand": kuairand, "movielens": movielens, "tabular": tabular}


def find(spec: Spec, data_root: str) -> tuple[File, ...]:
    """The spec's input files under `data_root`. Raises `SourceError`."""
    return FORMATS[spec.source.format].find(spec, data_root)


def read(file: File, spec: Spec) -> Iterator[Chunk]:
    """The rows of one file, in chunks. Raises `SourceError`, naming the file."""
    try:
        yield from FORMATS[spec.source.format].read(file, spec)
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"{file.path}: can't be read to its end: {reason}") from error


def fingerprint(spec: Spec, data_root: str) -> str:
    """Changes when an input file does (names, sizes, modification times): a cache key."""
    digest = hashlib.sha256()
    for file in find(spec, data_root):
        for path in (file.path, *file.joined):
            stat = os.stat(path)
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
