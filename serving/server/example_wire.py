"""The features of a serialized tf.Example, still serialized: no protobuf objects are built.

An Example holds one Features message (field 1), which holds a map entry (field 1) a feature: its
name (field 1) and Feature (field 2). See tensorflow/core/example/{example,feature}.proto and
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterable

_FIELD_1 = 0x0A  # field 1, length-delimited
_FIELD_2 = 0x12
_EMPTY = (b"", b"\x0a\x00", b"\x12\x00", b"\x1a\x00")  # no list, or an empty one of a kind


def entries(example: bytes) -> dict[bytes, bytes] | None:
    """The map entries of an Example, by the feature's name.

    Returns:
      Name -> the entry with its tag and length. None for what only a full parser can judge: bytes
      that aren't an Example, unknown fields, an entry in an unusual form, a name that stands
      there twice.
    """
    found: dict[bytes, bytes] = {}
    try:
        position = 0
        while position < len(example):
            position, end = _content(example, position, _FIELD_1)
            while position < end:
                start = position
                position, entry_end = _content(example, position, _FIELD_1)
                name_start, name_end = _content(example, position, _FIELD_1)
                name = example[name_start:name_end]
                name.decode()
                _, position = _content(example, name_end, _FIELD_2)
                if position != entry_end or entry_end > end or name in found:
                    return None
                found[name] = example[start:entry_end]
    except (ValueError, IndexError):
        return None
    return found


def _content(data: bytes, position: int, tag: int) -> tuple[int, int]:
    """Where the length-delimited field that begins at `position` has its content.

    Raises:
      ValueError, IndexError: there is no such field, or it goes beyond the data.
    """
    if data[position] != tag:
        raise ValueError("another field")
    length = data[position + 1]
    position += 2
    if length >= 0x80:
        length &= 0x7F
        for shift in range(7, 35, 7):
            byte = data[position]
            position += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise ValueError("longer than any message")
    end = position + length
    if end > len(data):
        raise ValueError("beyond the data")
    return position, end


def is_empty(entry: bytes) -> bool:
    """Whether an entry's feature plainly has no values."""
    _, name_end = _content(entry, _content(entry, 0, _FIELD_1)[0], _FIELD_1)
    start, end = _content(entry, name_end, _FIELD_2)
    return entry[start:end] in _EMPTY


def serialized(kept: Iterable[bytes]) -> bytes:
    """An Example of the given entries."""
    features = b"".join(kept)
    return bytes((_FIELD_1,)) + _varint(len(features)) + features


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
