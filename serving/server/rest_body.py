"""The body of an HTTP request, read in pieces, so that no more is held than a body may have."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from serving.errors import invalid

_PIECE_BYTES = 1 << 16
_TRAILER_BYTES = 1 << 13
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")
_LONGEST_CHUNK_LINE = 1 << 10


class TooLarge(Exception):
    """A body has more bytes than it may have."""


class Body:
    """
    Attributes:
      finished: nothing of it is left in the connection, where the next request would follow.
    """

    def __init__(self, environ: dict[str, Any], max_bytes: int):
        """
        Args:
          environ: WSGI's, of cheroot.
          max_bytes: of the body, as sent and unpacked.
        """
        self._stream = environ["wsgi.input"]
        self._is_chunked = environ["wsgi.input_terminated"]
        self._length = environ.get("CONTENT_LENGTH") or "0"
        self._encoding = environ.get("HTTP_CONTENT_ENCODING", "identity")
        self._max_bytes = max_bytes
        self.finished = not self._is_chunked and self._length == "0"

    def read(self) -> bytes | bytearray:
        """All of it, unpacked.

        Raises:
          TooLarge: it is larger than `max_bytes`; told from its length if it has one.
          ServingError: INVALID_ARGUMENT, it isn't what its headers say.
        """
        if self._encoding not in ("identity", "gzip"):
            raise invalid(f"Content-Encoding {self._encoding} isn't supported, gzip is")
        body = bytearray()
        for piece in self._chunks() if self._is_chunked else self._measured():
            body += piece
            if len(body) > self._max_bytes:
                raise TooLarge
        self.finished = True
        return _decompress(body, self._max_bytes) if self._encoding == "gzip" else body

    def _measured(self) -> Iterator[bytes]:
        if not self._length.isdigit():
            raise invalid(f"Content-Length {self._length} is no size")
        length = int(self._length)
        if length > self._max_bytes:
            raise TooLarge
        return _pieces(self._stream, length)

    def _chunks(self) -> Iterator[bytes]:
        """Of the chunked transfer coding (RFC 9112, 7.1), without extensions and trailers.

        cheroot's own reader takes lines of any length, and quadratic time for many chunks.
        """
        stream = self._stream.rfile
        while size := _chunk_size(stream):
            yield from _pieces(stream, size)
            if stream.read(2) != b"\r\n":
                raise invalid("the body is badly chunked: a chunk isn't as long as it says")
        left = _TRAILER_BYTES
        while (line := stream.readline(left)) != b"\r\n":
            left -= len(line)
            if not line:
                raise invalid("the body is badly chunked: nothing ends its trailers")


def _chunk_size(stream: BinaryIO) -> int:
    line = stream.readline(_LONGEST_CHUNK_LINE)
    match = _CHUNK_LINE.fullmatch(line)
    if not match:
        raise invalid(f"the body is badly chunked: {line[:40]!r} is no chunk size")
    return int(match[1], 16)


def _pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = stream.read(min(size, _PIECE_BYTES))
        if not piece:
            raise invalid(f"the body ends {size} bytes early")
        size -= len(piece)
        yield piece


def _decompress(body: bytearray, max_bytes: int) -> bytes:
    """Unpacks at most one byte more than a body may have: a few may stand for gigabytes."""
    try:
        unpacked = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise invalid(f"the body is no gzip: {error}") from None
    if len(unpacked) > max_bytes:
        raise TooLarge
    return unpacked
