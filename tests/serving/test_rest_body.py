"""Bodies in chunks, whatever their chunks are."""

import gzip
import io
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import ServingError
from serving.server.rest_body import Body, TooLarge

NEXT = b"GET /healthz HTTP/1.1\r\n"


def chunked(stream: io.BytesIO, max_bytes: int = 10_000, **headers: str) -> Body:
    cheroots = types.SimpleNamespace(rfile=stream)
    environ = {"wsgi.input": cheroots, "wsgi.input_terminated": True, **headers}
    return Body(environ, max_bytes)


def write(chunks: list[bytes], extension: bytes = b"", trailers: bytes = b"") -> bytes:
    sized = b"".join(b"%X%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return sized + b"0\r\n" + trailers + b"\r\n"


@given(
    st.lists(st.binary(min_size=1)),
    st.sampled_from([b"", b";", b' ;a="b"']),
    st.sampled_from([b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"]),
)
def test_a_chunked_body_is_read_to_its_end_and_no_further(chunks, extension, trailers):
    stream = io.BytesIO(write(chunks, extension, trailers) + NEXT)
    body = chunked(stream)
    assert not body.finished
    assert body.read() == b"".join(chunks)
    assert body.finished and stream.read() == NEXT


@given(st.lists(st.binary(min_size=1), min_size=1), st.data())
def test_a_chunked_body_that_ends_early_is_refused(chunks, data):
    whole = write(chunks)
    body = chunked(io.BytesIO(whole[: data.draw(st.integers(0, len(whole) - 1))]))
    with pytest.raises(ServingError, match="badly chunked|early"):
        body.read()
    assert not body.finished


@pytest.mark.parametrize("size", [b"-1", b"+1", b"0x1", b"1_0", b"", b" 1", b"1\n", b"f" * 17])
def test_only_hexadecimal_digits_are_a_size(size):
    with pytest.raises(ServingError, match="is no chunk size"):
        chunked(io.BytesIO(size + b"\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n")).read()


def test_the_limit_is_of_the_body_not_of_its_chunks():
    chunks = [b"x"] * 100
    assert chunked(io.BytesIO(write(chunks)), max_bytes=100).read() == b"x" * 100
    with pytest.raises(TooLarge):
        chunked(io.BytesIO(write(chunks)), max_bytes=99).read()
    packed = write([gzip.compress(b"x" * 100)])
    with pytest.raises(TooLarge):
        chunked(io.BytesIO(packed), max_bytes=99, HTTP_CONTENT_ENCODING="gzip").read()
