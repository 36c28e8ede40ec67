"""TFRecord files: length (8 bytes), its checksum (4), the record, its checksum (4), and so on."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

_MAX_LENGTH = 1 << 31
"""No protobuf message is longer; in a file of another kind any eight bytes may stand here."""


class TFRecordError(ValueError):
    """What is read isn't a TFRecord file, or not a whole one."""


def read(file: BinaryIO) -> Iterator[bytes]:
    """Yields the records. Checksums aren't looked at.

    Raises:
      TFRecordError: the file ends within a record, or isn't of this kind.
    """
    while header := file.read(12):
        if len(header) < 12:
            raise TFRecordError("ends within a record")
        (length,) = struct.unpack("<Q", header[:8])
        if length >= _MAX_LENGTH:
            raise TFRecordError("isn't a TFRecord file")
        record = file.read(length)
        if len(record) < length or len(file.read(4)) < 4:
            raise TFRecordError("ends within a record")
        yield record
