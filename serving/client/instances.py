"""Reads the instances of a file: serialized `tf.Example`s, from JSON lines or TFRecords."""

from __future__ import annotations

import gzip
import json
import pathlib
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, cast

from serving import tfrecord
from serving.client.example import ExampleError, example

_GZIP = b"\x1f\x8b"


class InstancesError(ValueError):
    """A file that can't be read; the message names it and the line."""


def read_instances(path: str) -> Iterator[bytes]:
    """Yields serialized `tf.Example`s.

    Args:
      path: `*.tfrecord`, `*.tfrecord.gz` or TFX's `data_tfrecord-*.gz`: TFRecords. Else JSON
        lines, one instance a line as `{"feature": value or list, …}`; `-` is standard input.

    Raises:
      InstancesError: no such file, a line that isn't such JSON, a truncated file.
    """
    try:
        if path == "-":
            yield from _json_lines(sys.stdin, "standard input")
        elif "tfrecord" in pathlib.Path(path).name:
            with open(path, "rb") as file:
                zipped = file.read(2) == _GZIP
                file.seek(0)
                records = gzip.GzipFile(fileobj=file) if zipped else file
                yield from tfrecord.read(cast(BinaryIO, records))
        else:
            with open(path, encoding="utf-8") as file:
                yield from _json_lines(file, path)
    except tfrecord.TFRecordError as error:
        raise InstancesError(f"{path}: {error}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InstancesError(f"{path}: can't be read: {error}") from None


def _json_lines(lines: Iterable[str], name: str) -> Iterator[bytes]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            features = json.loads(line)
            if not isinstance(features, dict):
                raise ExampleError('one JSON object a line: {"feature": value or list, ...}')
            yield example(features)
        except (json.JSONDecodeError, ExampleError) as error:
            raise InstancesError(f"{name}, line {number}: {error}") from None
