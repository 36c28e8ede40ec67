"""Reads the instances of a file: serialized `tf.Example`s, from JSON lines or TFRecords."""

from __future__ import annotations

import contextlib
import gzip
import json
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast

from serving import errors, tfrecord
from serving.client.example import ExampleError, example

_GZIP = b"\x1f\x8b"
_NOT_JSON = "not JSON: one user a line (or TFRecords, in a file named so)"
_Write = Callable[[Mapping[str, Any]], bytes]


class InstancesError(ValueError):
    """A file that can't be read; the message names it and the line."""


@contextlib.contextmanager
def open_instances(path: str) -> Iterator[BinaryIO]:
    """A file for `read_instances`; `-` is standard input.

    Raises:
      InstancesError: there is none.
    """
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise InstancesError(f"{path}: can't be read: {error.strerror}") from None
    with file:
        yield file


def read_instances(file: BinaryIO, write: _Write = example) -> Iterator[bytes]:
    """Yields serialized `tf.Example`s.

    Args:
      file: `*.tfrecord`, `*.tfrecord.gz` or TFX's `data_tfrecord-*.gz`: TFRecords. Else JSON
        lines, one instance a line as `{"feature": value or list, …}`.
      write: a line's features to a serialized `tf.Example`.

    Raises:
      InstancesError: a line that isn't such JSON or that `write` refuses, a truncated file.
    """
    try:
        if "tfrecord" in pathlib.Path(file.name).name:
            zipped = file.read(2) == _GZIP
            file.seek(0)
            records = gzip.GzipFile(fileobj=file) if zipped else file
            yield from tfrecord.read(cast(BinaryIO, records))
        else:
            yield from _json_lines(file, write)
    except tfrecord.TFRecordError as error:
        raise InstancesError(f"{file.name}: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InstancesError(f"{file.name}: can't be read: {error}") from None


def _json_lines(file: BinaryIO, write: _Write) -> Iterator[bytes]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{file.name}, line {number}"
        try:
            features = json.loads(line.decode("utf-8-sig"))
            if not isinstance(features, dict):
                raise ExampleError('one JSON object a line: {"feature": value or list, ...}')
            yield write(features)
        except errors.ServingError as error:
            raise InstancesError(f"{place}: {error.message}") from None
        except ExampleError as error:
            raise InstancesError(f"{place}: {error}") from None
        except json.JSONDecodeError as error:
            raise InstancesError(
                f"{place}: {_NOT_JSON} ({error.msg}, column {error.colno})"
            ) from None
        except UnicodeError:
            raise InstancesError(f"{place}: {_NOT_JSON} (no UTF-8 text)") from None
