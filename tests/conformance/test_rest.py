"""The REST API as TF Serving documents it (api_rest.md)."""

from __future__ import annotations

import base64
import math

import pytest

PREDICT = "/v1/models/line:predict"
TWO = {"a": [1, 2], "b": "u"}
BYTES = {"b64": base64.b64encode(b"u\xff").decode()}


@pytest.mark.parametrize(
    "path,body,answer",
    {
        "row format, values": (PREDICT, {"instances": [1.0, 2.0]}, {"predictions": [3.0, 4.0]}),
        "whole numbers for a float": (PREDICT, {"instances": [1, 2]}, {"predictions": [3.0, 4.0]}),
        "row format, objects of one input": (
            PREDICT,
            {"instances": [{"x": 1.0}, {"x": 2.0}]},
            {"predictions": [3.0, 4.0]},
        ),
        "row format, objects": (
            PREDICT,
            {"signature_name": "two", "instances": [TWO, {"a": [3, 5], "b": BYTES}]},
            {
                "predictions": [
                    {"sum": 3, "echo_bytes": {"b64": "dQ=="}, "label": "odd"},
                    {"sum": 8, "echo_bytes": {"b64": "df8="}, "label": "even"},
                ]
            },
        ),
        "columnar format, values": (PREDICT, {"inputs": [1.0, 2.0]}, {"outputs": [3.0, 4.0]}),
        "columnar format, names": (
            PREDICT,
            {"signature_name": "two", "inputs": {"a": [[1, 2]], "b": ["u"]}},
            {"outputs": {"sum": [3], "echo_bytes": [{"b64": "dQ=="}], "label": ["odd"]}},
        ),
        "one input by its name": (PREDICT, {"inputs": {"x": [1.0]}}, {"outputs": [3.0]}),
        "a version": (
            "/v1/models/line/versions/1:predict",
            {"instances": [1.0]},
            {"predictions": [2.5]},
        ),
        "a label": (
            "/v1/models/line/labels/stable:predict",
            {"instances": [1.0]},
            {"predictions": [2.5]},
        ),
        "another model": ("/v1/models/other:predict", {"instances": [1.0]}, {"predictions": [5.0]}),
        "classify": (
            "/v1/models/line:classify",
            {"signature_name": "classify", "examples": [{"x": 1.0}, {"x": 2.0, "n": 5}]},
            {"results": [[["y", 3.0], ["n", 0.0]], [["y", 4.0], ["n", 5.0]]]},
        ),
        "regress": (
            "/v1/models/line:regress",
            {"signature_name": "regress", "examples": [{"x": 1.0}, {"x": 2.0, "n": 5}]},
            {"results": [3.0, 9.0]},
        ),
        "regress, lists of one": (
            "/v1/models/line:regress",
            {"signature_name": "regress", "examples": [{"x": [1.0]}]},
            {"results": [3.0]},
        ),
        "regress, context": (
            "/v1/models/line:regress",
            {"signature_name": "regress", "context": {"n": 10}, "examples": [{"x": 1.0}]},
            {"results": [13.0]},
        ),
    }.values(),
)
def test_answers(server, path, body, answer):
    assert server.rest(path, body) == (200, answer)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_has_no_words_for(server, value):
    status, answer = server.rest(PREDICT, b'{"instances": [%s, 1.0]}' % value.encode())
    assert status == 200
    got, other = answer["predictions"]
    assert other == 3.0
    assert math.isnan(got) if value == "NaN" else got == float(value)


FAILURES = {
    "unknown model": ("/v1/models/nobody:predict", {"instances": [1.0]}, 404),
    "unknown version": ("/v1/models/line/versions/99:predict", {"instances": [1.0]}, 404),
    "unknown label": ("/v1/models/line/labels/no:predict", {"instances": [1.0]}, 400),
    "unknown method": ("/v1/models/line:train", {"instances": [1.0]}, 400),
    "version no number": ("/v1/models/line/versions/x:predict", {"instances": [1.0]}, 400),
    "unknown signature": (PREDICT, {"signature_name": "no", "instances": [1.0]}, 400),
    "signature no text": (PREDICT, {"signature_name": 3, "instances": [1.0]}, 400),
    "no body": (PREDICT, b"", 400),
    "not JSON": (PREDICT, b"{", 400),
    "not an object": (PREDICT, [1.0], 400),
    "neither format": (PREDICT, {"rows": [1.0]}, 400),
    "both formats": (PREDICT, {"instances": [1.0], "inputs": [1.0]}, 400),
    "instances no list": (PREDICT, {"instances": 1.0}, 400),
    "instances empty": (PREDICT, {"instances": []}, 400),
    "text for a float": (PREDICT, {"instances": ["one"]}, 400),
    "fraction for an int": (
        PREDICT,
        {"signature_name": "two", "instances": [{"a": [1.5, 2], "b": "u"}]},
        400,
    ),
    "number for text": (
        PREDICT,
        {"signature_name": "two", "instances": [{"a": [1, 2], "b": 3}]},
        400,
    ),
    "rows of different shapes": (
        PREDICT,
        {"signature_name": "two", "instances": [TWO, {"a": [1], "b": "u"}]},
        400,
    ),
    "rows of different names": (
        PREDICT,
        {"signature_name": "two", "instances": [TWO, {"a": [1, 2]}]},
        400,
    ),
    "an unknown name": (PREDICT, {"instances": [{"z": 1.0}]}, 400),
    "values for several inputs": (PREDICT, {"signature_name": "two", "instances": [1.0]}, 400),
    "an input missing": (PREDICT, {"signature_name": "two", "inputs": {"a": [[1, 2]]}}, 400),
    "base64 that isn't": (
        PREDICT,
        {"signature_name": "two", "inputs": {"a": [[1, 2]], "b": [{"b64": "?"}]}},
        400,
    ),
    "the model refuses": (PREDICT, {"signature_name": "fails", "instances": [1.0]}, 400),
    "classify, no examples": ("/v1/models/line:classify", {"signature_name": "classify"}, 400),
    "classify, empty": ("/v1/models/line:classify", {"examples": []}, 400),
    "classify, mixed types": (
        "/v1/models/line:classify",
        {"signature_name": "classify", "examples": [{"x": [1.0, "a"]}]},
        400,
    ),
    "regress, unknown signature": (
        "/v1/models/line:regress",
        {"signature_name": "no", "examples": [{"x": 1.0}]},
        400,
    ),
    "status of an unknown model": ("/v1/models/nobody", None, 404),
    "status of an unknown version": ("/v1/models/line/versions/99", None, 404),
    "metadata of an unknown model": ("/v1/models/nobody/metadata", None, 404),
    "predict by GET": (PREDICT, None, 400),
}


@pytest.mark.parametrize("path,body,status", FAILURES.values(), ids=FAILURES)
def test_failures_are_json_with_http_codes(server, path, body, status):
    got, answer = server.rest(path, body)
    assert got == status, answer
    assert set(answer) == {"error"} and answer["error"] and "Traceback" not in answer["error"]


def test_status(server):
    available = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    both = [{"version": "2", **available}, {"version": "1", **available}]
    assert server.rest("/v1/models/line") == (200, {"model_version_status": both})
    for path in ("/v1/models/line/versions/1", "/v1/models/line/labels/stable"):
        assert server.rest(path) == (200, {"model_version_status": both[1:]})


def test_metadata(server):
    status, answer = server.rest("/v1/models/line/versions/1/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "line", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    a = signatures["two"]["inputs"]["a"]
    assert a["dtype"] == "DT_INT64"
    assert [d["size"] for d in a["tensor_shape"]["dim"]] == ["-1", "2"]
