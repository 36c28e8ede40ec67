"""The features of a serialized tf.Example, still serialized: a tenth of a full parse's cost.

An Example holds one Features message, which holds a map entry a feature: its name (field 1) and
Feature (field 2). See tensorflow/core/example/{example,feature}.proto and
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import message

from serving import protos

_FIELD_1 = 0x0A  # field 1, length-delimited
_FIELD_2 = 0x12
_EMPTY = (b"", b"\x0a\x00", b"\x12\x00", b"\x1a\x00")  # no list, or an empty one of a kind


def entries(example: bytes) -> dict[bytes, bytes] | None:
    """The map entries of an Example, by the feature's name.

    Returns:
      Name -> the entry. None for what only a full parser can judge: bytes that aren't an Example,
      an entry in an unusual form, a name that stands there twice.
    """
    found: dict[bytes, bytes] = {}
    try:
        for entry in protos.ShallowExample.FromString(example).features.feature:
            name_end = 2 + entry[1]
            name = entry[2:name_end]
            if not name.isascii():
                name.decode()
            usual = entry[0] == _FIELD_1 and entry[1] < 0x80 and _feature_start(entry, name_end)
            if not usual or name in found:
                return None
            found[name] = entry
    except (message.DecodeError, ValueError, IndexError):
        return None
    return found


def _feature_start(entry: bytes, position: int) -> int:
    """Where the Feature begins that is the rest of an entry; 0 if that isn't what the rest is."""
    if entry[position] != _FIELD_2:
        return 0
    size = 0
    for shift in range(0, 35, 7):  # no message is longer than five bytes can say
        position += 1
        byte = entry[position]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:
            return position + 1 if position + 1 + size == len(entry) else 0
    return 0


def is_empty(entry: bytes) -> bool:
    """Whether an entry's feature plainly has no values."""
    return entry[_feature_start(entry, 2 + entry[1]) :] in _EMPTY


def serialized(kept: Iterable[bytes]) -> bytes:
    """An Example of the given entries."""
    example = protos.ShallowExample()
    example.features.feature.extend(kept)
    return example.SerializeToString()
