"""Reads the instances of a file: serialized `tf.Example`s, from JSON lines or TFRecords."""

from __future__ import annotations

import gzip
import json
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, cast

from serving import errors, tfrecord
from serving.client.example import ExampleError, example

_GZIP = b"\x1f\x8b"
_Write = Callable[[Mapping[str, Any]], bytes]


class InstancesError(ValueError):
    """A file that can't be read; the message names it and the line."""


def read_instances(path: str, write: _Write = example) -> Iterator[bytes]:
    """Yields serialized `tf.Example`s.

    Args:
      path: `*.tfrecord`, `*.tfrecord.gz` or TFX's `data_tfrecord-*.gz`: TFRecords. Else JSON
        lines, one instance a line as `{"feature": value or list, …}`; `-` is standard input.
      write: a line's features to a serialized `tf.Example`.

    Raises:
      InstancesError: no such file, a line that isn't such JSON or that `write` refuses, a
        truncated file.
    """
    try:
        if path == "-":
            yield from _json_lines(sys.stdin, "standard input", write)
        elif "tfrecord" in pathlib.Path(path).name:
            with open(path, "rb") as file:
                zipped = file.read(2) == _GZIP
                file.seek(0)
                records = gzip.GzipFile(fileobj=file) if zipped else file
                yield from tfrecord.read(cast(BinaryIO, records))
        else:
            with open(path, encoding="utf-8") as file:
                yield from _json_lines(file, path, write)
    except tfrecord.TFRecordError as error:
        raise InstancesError(f"{path}: {error}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InstancesError(f"{path}: can't be read: {error}") from None


def _json_lines(lines: Iterable[str], name: str, write: _Write) -> Iterator[bytes]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            features = json.loads(line)
            if not isinstance(features, dict):
                raise ExampleError('one JSON object a line: {"feature": value or list, ...}')
            yield write(features)
        except errors.ServingError as error:
            raise InstancesError(f"{name}, line {number}: {error.message}") from None
        except (json.JSONDecodeError, ExampleError) as error:
            raise InstancesError(f"{name}, line {number}: {error}") from None
