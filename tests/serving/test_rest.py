"""The REST API of a real server, by TF Serving's documentation (g3doc/api_rest.md)."""

import base64
import gzip
import json
import math
import socket

import numpy as np
import pytest

from serving.client import example
from tests.serving.http import ask
from tests.serving.users import USER


def b64(data: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode()}


@pytest.fixture(scope="module")
def model(server) -> str:
    return f"{server.rest_url}/v1/models/users"


# --- answers


def test_row_format(model):
    instances = [{"x": 1, "y": 0.1}, {"x": 2.5, "y": -1}]
    answer = ask(f"{model}:predict", {"signature_name": "add", "instances": instances})
    assert answer.code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json == {
        "predictions": [{"sum": 1.1, "difference": 0.9}, {"sum": 1.5, "difference": 3.5}]
    }


def test_columnar_format(model):
    inputs = {"x": [1, 2.5], "y": [0.1, -1]}
    answer = ask(f"{model}:predict", {"signature_name": "add", "inputs": inputs})
    assert answer.json == {"outputs": {"sum": [1.1, 1.5], "difference": [0.9, 3.5]}}


def test_one_input_and_one_output_need_no_names(model):
    answer = ask(f"{model}:predict", {"signature_name": "spin", "inputs": 3})
    assert answer.json == {"outputs": 3.0}
    encoded = b64(example(USER))
    rows = ask(f"{model}:predict", {"signature_name": "embed", "instances": [encoded]}).json
    named = [{"examples": encoded}]
    assert rows == ask(f"{model}:predict", {"signature_name": "embed", "instances": named}).json
    assert rows == {"predictions": [{"embedding": [0.3, 0.002, -0.3, 0.6], "user_id": "u1"}]}
    columns = ask(f"{model}:predict", {"signature_name": "embed", "inputs": [encoded]}).json
    assert columns["outputs"]["embedding"] == [[0.3, 0.002, -0.3, 0.6]]


def test_outputs_come_in_one_order(model):
    (row,) = ask(f"{model}:predict", {"instances": [b64(example(USER))]}).json["predictions"]
    assert list(row) == ["user_id", "candidates", "click", "vip"]


def test_nan_and_infinity_travel_both_ways(model):
    body = b'{"signature_name": "add", "inputs": {"x": [NaN, Infinity, -Infinity], "y": [1, 1, 1]}}'
    values = ask(f"{model}:predict", body).json["outputs"]["sum"]
    assert math.isnan(values[0]) and values[1:] == [math.inf, -math.inf]


def test_classify_and_regress(model):
    second = {"user_id": "u2", "sequence_item": [1000], "candidate_price": 0.5}
    body = {"signature_name": "classify", "examples": [USER, second]}
    results = ask(f"{model}:classify", body).json["results"]
    assert [[label for label, _ in classes] for classes in results] == [["no", "yes"]] * 2
    scores = np.array([[score for _, score in classes] for classes in results])
    vip = 1 / (1 + np.exp([-0.3, -1.0]))
    np.testing.assert_allclose(scores, np.stack([1 - vip, vip], 1), atol=1e-6)
    body = {"signature_name": "regress", "examples": [USER, second]}
    assert ask(f"{model}:regress", body).json == {"results": [0.3, 1.0]}


def test_a_context_holds_for_every_example(model):
    context = {"user_id": b64(b"u1"), "sequence_item": [100, 200]}
    examples = [{"candidate_price": [0.5]}, {"candidate_price": []}]
    body = {"signature_name": "regress", "context": context, "examples": examples}
    assert ask(f"{model}:regress", body).json == {"results": [0.3, 0.3]}


def test_a_version_of_ones_choice(model):
    body = {"signature_name": "spin", "inputs": 1}
    assert ask(f"{model}/versions/7:predict", body).json == {"outputs": 1.0}
    assert ask(f"{model}/versions/7:PREDICT".replace("v1", "V1"), body).code == 200


def test_status(model):
    expected = {
        "model_version_status": [
            {
                "version": "7",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    assert ask(model).json == expected
    assert ask(f"{model}/versions/7").json == expected


def test_metadata(model):
    found = ask(f"{model}/metadata").json
    assert found == ask(f"{model}/versions/7/metadata").json
    assert found["model_spec"] == {"name": "users", "signature_name": "", "version": "7"}
    signature = found["metadata"]["signature_def"]["signature_def"]["add"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"] == {
        "dim": [{"size": "-1", "name": ""}],
        "unknown_rank": False,
    }


# --- errors


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/v1/models/nobody", 404, "Could not find any versions of model nobody"),
        ("/v1/models/users/versions/9", 404, "Could not find version 9 of model users"),
        ("/v1/models/users/labels/canary", 400, "Unrecognized servable version label: canary"),
        ("/v1/models/users/versions/9/metadata", 404, "request: Specific(users, 9)"),
        (f"/v1/models/users/versions/{2**63}", 400, f"convert version: {2**63} to numeric."),
        ("/v1/models/users:predict", 400, "Malformed request: GET /v1/models/users:predict"),
        ("/v1/models", 400, "Missing model name in request."),
        ("/v1/sing", 400, "Malformed request: GET /v1/sing"),
        ("/v2/models", 404, "no such page: /v2/models"),
    ],
)
def test_errors_of_get(server, path, code, text):
    answer = ask(server.rest_url + path)
    assert answer.code == code
    assert text in answer.error


ADD = {"signature_name": "add"}
BAD_REQUESTS = [
    (b"", "JSON Parse error: The document is empty"),
    (b'{"instances": [1,]}', "JSON Parse error: "),
    (b"\xff\xfe{", "JSON Parse error: "),
    (b"[1]", "JSON Value: [1] Is not object"),
    (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "JSON Parse error: it is nested"),
    (b'{"signature_name": "\\ud800"}', "half of a surrogate pair"),
    ({"signature_name": 1}, "'signature_name' key must be a string value."),
    ({"signature_name": "sing"}, 'Serving signature name: "sing" not found in signature def'),
    (ADD, "Missing 'inputs' or 'instances' key"),
    ({**ADD, "inputs": [], "instances": []}, "expecting only one of 'inputs' or 'instances'"),
    ({**ADD, "instances": {}}, "'instances' to be an list/array"),
    ({**ADD, "instances": []}, "No values in 'instances' array"),
    ({**ADD, "instances": [1.0]}, "instances is a plain list, but expecting list of objects"),
    ({**ADD, "instances": [b64(b"a")]}, "instances is a plain list, but expecting list of obj"),
    (
        {"signature_name": "spin", "inputs": json.loads("[" * 40 + "]" * 40)},
        "lists are nested deeper than 32 levels",
    ),
    ({**ADD, "inputs": [1.0]}, "inputs is a plain value/list, but expecting an object"),
    ({**ADD, "inputs": {"x": [1]}}, "Missing named input: y in 'inputs' object."),
    ({**ADD, "instances": [{"x": 1, "y": 1}, 2]}, "Expecting object but got list at item 1"),
    (
        {**ADD, "instances": [{"x": 1, "z": 1}]},
        "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT:"
        " JSON object: does not have named input: z",
    ),
    (
        {**ADD, "instances": [{"x": 1, "y": 1}, {"x": 1}]},
        "Failed to process element: 1 of 'instances' list. JSON object: {\"x\": 1}"
        " must only have keys: x,y, and all of them; missing: y",
    ),
    (
        {**ADD, "instances": [{"x": 1, "y": 1}, {"x": 1, "y": [2]}]},
        "Failed to process element: 1 key: y of 'instances' list. Error: INVALID_ARGUMENT:"
        " Expecting shape [] but got: [1]",
    ),
    (
        {**ADD, "instances": [{"x": 1, "y": "a"}]},
        "Failed to process element: 0 key: y of 'instances' list. Error: INVALID_ARGUMENT:"
        ' JSON Value: "a" Type: String is not of expected type: float',
    ),
    ({**ADD, "inputs": {"x": [True], "y": [1]}}, "JSON Value: true Type: True is not of expected"),
    ({**ADD, "inputs": {"x": [None], "y": [1]}}, "JSON Value: null Type: Null is not of expected"),
    ({**ADD, "inputs": {"x": [[1], 2], "y": [1]}}, "found at incorrect level"),
    ({**ADD, "inputs": {"x": [1, [2]], "y": [1]}}, "Encountered list at unexpected level"),
    ({**ADD, "inputs": {"x": [[1], [2, 3]], "y": [1]}}, "Encountered list at unexpected size: 2"),
    ({**ADD, "inputs": {"x": [1e39], "y": [1]}}, "1e+39 to float32 without loss of precision."),
    ({**ADD, "inputs": {"x": [2**24], "y": [1]}}, "16777216 to float32 without loss of precision."),
    ({"signature_name": "spin", "inputs": 1.5}, "Type: Number is not of expected type: int64"),
    ({"signature_name": "spin", "inputs": 2**63}, "Type: Number is not of expected type: int64"),
    ({"inputs": [{"b64": "!"}]}, "Unable to base64 decode"),
    ({"inputs": [{"a": "!"}]}, "not formatted correctly for base64 data"),
    ({"inputs": [b64(b"\xff\xff")]}, "Could not parse example input"),
    ({"signature_name": "spin", "instances": [1]}, "input"),
]


@pytest.mark.parametrize(("body", "text"), BAD_REQUESTS)
def test_bad_predict_requests_are_400_with_one_clear_message(model, body, text):
    answer = ask(f"{model}:predict", body)
    assert answer.code == 400
    assert text in answer.error
    assert len(answer.error) < 2000


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": {}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [1]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"a": None}]}, "Feature: a has element with unexpected JSON type: Null"),
        ({"examples": [{"a": [[1]]}]}, "Feature: a has element with unexpected JSON type: Array"),
        (
            {"examples": [{"a": [1, "b"]}]},
            "Unexpected element type in feature: a expecting type: i",
        ),
        ({"examples": [{"a": 2**63}]}, "Feature: a has uint64 element. Only int64 is supported."),
        ({"examples": [USER], "signature_name": "sing"}, "No signature was found with the name"),
    ],
)
def test_bad_classify_requests_are_400_with_one_clear_message(model, body, text):
    for method in ("classify", "regress"):
        answer = ask(f"{model}:{method}", {"signature_name": method, **body})
        assert answer.code == 400
        assert text in answer.error


def test_unknown_models_and_versions_are_404(server, model):
    body = {"inputs": 1}
    assert ask(f"{server.rest_url}/v1/models/nobody:predict", body).code == 404
    answer = ask(f"{model}/versions/9:predict", body)
    assert (answer.code, answer.error) == (
        404,
        "Servable not found for request: Specific(users, 9)",
    )
    assert ask(f"{model}/labels/canary:predict", body).code == 400


def test_a_body_too_large_is_413_before_it_is_read(model, server):
    host, port = server.rest_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/models/users:predict HTTP/1.1\r\nHost: h\r\n"
            b"Content-Length: 1000000000000\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert "larger than" in json.loads(body)["error"]


def test_a_chunked_body(server):
    host, port = server.rest_url.removeprefix("http://").split(":")
    body = b'{"signature_name": "spin", "inputs": 2}'
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/models/users:predict HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))
    assert answer.endswith(b'{"outputs": 2.0}')


def test_a_compressed_body(model):
    body = gzip.compress(b'{"signature_name": "spin", "inputs": 2}')
    answer = ask(f"{model}:predict", body, headers={"Content-Encoding": "gzip"})
    assert answer.json == {"outputs": 2.0}
    answer = ask(f"{model}:predict", body[5:], headers={"Content-Encoding": "gzip"})
    assert answer.code == 400 and "the body is no gzip" in answer.error
    answer = ask(f"{model}:predict", body, headers={"Content-Encoding": "br"})
    assert answer.code == 400 and "br isn't supported" in answer.error


def test_browsers_of_other_origins_are_told_nothing_by_default(model):
    assert "Access-Control-Allow-Origin" not in ask(model).headers
    assert ask(model, verb="OPTIONS").code == 400
