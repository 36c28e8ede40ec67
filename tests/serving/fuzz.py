"""Requests that no honest client sends, each with the answers it may get."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from serving import protos, tensors
from serving.client import example

INVALID = frozenset({"INVALID_ARGUMENT"})
MISSING = frozenset({"NOT_FOUND"})
NOT_OURS = frozenset({"FAILED_PRECONDITION"})
REFUSED = INVALID | MISSING | NOT_OURS | {"UNIMPLEMENTED"}
"""What damaged bytes may turn out to be wrong with."""
FINE = frozenset({"OK"})
LONGEST = 300_000

MODEL = "users"
PREDICTION = "/tensorflow.serving.PredictionService"
MODELS = "/tensorflow.serving.ModelService"


class Call(NamedTuple):
    """A gRPC request, as bytes."""

    kind: str
    method: str
    body: bytes
    codes: frozenset[str]


class Page(NamedTuple):
    """An HTTP request; `statuses` are HTTP's."""

    kind: str
    method: str
    path: str
    body: bytes
    statuses: frozenset[int]


class Stream(NamedTuple):
    """An HTTP request that begins with `head` and goes on with `more` for ever."""

    kind: str
    head: bytes
    more: bytes
    statuses: frozenset[int]


def predict_request(signature: str = "add", **inputs: np.ndarray) -> protos.PredictRequest:
    request = protos.PredictRequest()
    request.model_spec.name = MODEL
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        tensors.to_proto(np.asarray(array), request.inputs[name])
    return request


def honest(chance: random.Random) -> protos.PredictRequest:
    """A request that is answered with OK."""
    if chance.random() < 0.5:
        rows = chance.randrange(1, 6)
        x = np.array([chance.gauss(0, 1) for _ in range(rows)], np.float32)
        return predict_request(x=x, y=-x)
    user = {"user_id": f"u{chance.randrange(99)}", "sequence_item": [1, 2], "candidate_price": 0.5}
    return predict_request("serving_default", examples=np.array([example(user)], object))


def _predict(kind: str, request: protos.PredictRequest, codes: frozenset[str]) -> Call:
    return Call(kind, f"{PREDICTION}/Predict", request.SerializeToString(), codes)


def not_a_number(chance: random.Random) -> Call:
    odd = np.float32([chance.choice([np.nan, np.inf, -np.inf, 3e38]) for _ in range(3)])
    return _predict("not a number", predict_request(x=odd, y=odd), FINE)


def truncated(chance: random.Random) -> Call:
    body = honest(chance).SerializeToString()
    return Call("truncated", f"{PREDICTION}/Predict", body[: chance.randrange(len(body))], REFUSED)


def flipped(chance: random.Random) -> Call:
    body = bytearray(honest(chance).SerializeToString())
    for _ in range(chance.randrange(1, 8)):
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return Call("flipped bits", f"{PREDICTION}/Predict", bytes(body), REFUSED | FINE)


def noise(chance: random.Random) -> Call:
    method = chance.choice(["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"])
    body = chance.randbytes(chance.randrange(1, 200))
    return Call("noise", f"{PREDICTION}/{method}", body, REFUSED)


def wrong_dtype(chance: random.Random) -> Call:
    request = predict_request(x=np.float32([1]), y=np.float32([1]))
    wrong = [n for n in [*range(31), 101, 119, 10**6] if n != 1]
    request.inputs["x"].dtype = chance.choice(wrong)
    return _predict("wrong dtype", request, INVALID)


def wrong_shape(chance: random.Random) -> Call:
    request = predict_request(x=np.float32([1, 2]), y=np.float32([1, 2]))
    shape = request.inputs["x"].tensor_shape
    del shape.dim[:]
    sizes = chance.choice(
        [[], [3, -1], [-2], [2**62], [2**40, 2**40], [1] * 300, [2**31, 2**31, 0], [7]]
    )
    for size in sizes:
        shape.dim.add().size = size
    shape.unknown_rank = not sizes
    return _predict("wrong shape", request, INVALID)


def giant_by_repetition(chance: random.Random) -> Call:
    """A few bytes that ask for gigabytes: one value for a huge shape."""
    request = predict_request()
    for name in ("x", "y"):
        tensor = request.inputs[name]
        tensor.dtype = tensors.NUMBERS[np.dtype(np.float32)]
        tensor.tensor_shape.dim.add().size = 2 ** chance.randrange(28, 60)
        tensor.float_val.append(1)
    return _predict("giant by repetition", request, INVALID)


def ragged_rows(chance: random.Random) -> Call:
    x, y = np.ones(chance.randrange(2, 9), np.float32), np.ones(11, np.float32)
    return _predict("inputs of different lengths", predict_request(x=x, y=y), INVALID)


def bad_example(chance: random.Random) -> Call:
    whole = example({"user_id": "u", "sequence_item": [1, 2], "candidate_price": [0.5]})
    broken = [
        chance.randbytes(chance.randrange(1, 60)),
        whole[: chance.randrange(1, len(whole))],
        example({"user_id": 3}),
        example({"user_id": "u", "sequence_item": "text"}),
        example({"user_id": "u", "candidate_price": [3]}),
    ]
    array = np.array([chance.choice(broken)], object)
    # A cut between two features is an example too, of fewer features.
    return _predict(
        "bad example", predict_request("serving_default", examples=array), INVALID | FINE
    )


def wrong_names(chance: random.Random) -> Call:
    request = honest(chance)
    kind = chance.randrange(6)
    if kind == 0:
        request.model_spec.name = chance.choice(["nobody", "users/7", "x" * 5000, "\x00"])
        return _predict("unknown model", request, MISSING)
    if kind == 1:
        request.model_spec.version.value = chance.choice([-1, 0, 8, 2**62])
        return _predict("unknown version", request, MISSING)
    if kind == 2:
        request.model_spec.version_label = chance.choice(["", "stable", "é" * 2000])
        return _predict("unknown label", request, INVALID)
    if kind == 3:
        request.model_spec.signature_name = chance.choice(["nope", " ", "serving_default\n"])
        return _predict("unknown signature", request, NOT_OURS)
    if kind == 4:
        request.output_filter.extend(chance.choice([["nope"], [""], ["sum", "sum"]]))
        return _predict("unknown output", request, INVALID)
    request.inputs["surplus"].CopyFrom(tensors.to_proto(np.float32([1])))
    return _predict("surplus input", request, INVALID)


def not_utf8(chance: random.Random) -> Call:
    body = honest(chance).SerializeToString().replace(b"users", b"us\xff\xferS"[:5])
    return Call("a name that is no UTF-8", f"{PREDICTION}/Predict", body, REFUSED)


def unknown_method(chance: random.Random) -> Call:
    method = chance.choice([f"{PREDICTION}/Train", "/no.such.Service/Predict", f"{MODELS}/Stop"])
    body = honest(chance).SerializeToString()
    return Call("unknown method", method, body, frozenset({"UNIMPLEMENTED"}))


def bad_reload(chance: random.Random) -> Call:
    request = protos.ReloadConfigRequest()
    model = request.config.model_config_list.config.add()
    model.name = MODEL
    model.base_path = chance.choice(["", "relative/path"])
    model.model_platform = "tensorflow"
    body = request.SerializeToString()
    return Call("bad reload", f"{MODELS}/HandleReloadConfigRequest", body, INVALID)


CALLS: tuple[Callable[[random.Random], Call], ...] = (
    not_a_number, truncated, flipped, noise, wrong_dtype, wrong_shape, giant_by_repetition,
    ragged_rows, bad_example, wrong_names, not_utf8, unknown_method, bad_reload,
)  # fmt: skip

PREDICT = f"/v1/models/{MODEL}:predict"
BAD = frozenset({400})


def _post(kind: str, body: object, statuses: frozenset[int] = BAD, path: str = PREDICT) -> Page:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Page(kind, "POST", path, data, statuses)


def _honest_body(chance: random.Random) -> dict:
    return {"signature_name": "add", "instances": [{"x": chance.random(), "y": 1}] * 3}


def cut_json(chance: random.Random) -> Page:
    body = json.dumps(_honest_body(chance)).encode()
    return _post("JSON cut off", body[: chance.randrange(len(body))])


def deep_json(chance: random.Random) -> Page:
    depth = 100_000 if chance.random() < 0.05 else chance.choice([40, 200, 2_000])
    opening, closing = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    body = b'{"signature_name": "add", "inputs": {"x": ' + opening * depth
    return _post("deep JSON", body + b"1" + closing * depth + b', "y": 1}}')


def huge_json(chance: random.Random) -> Page:
    x = [1.5] * (LONGEST if chance.random() < 0.05 else 3_000)
    inputs = {"x": x, "y": x[: len(x) - chance.randrange(2)]}
    statuses = frozenset({200 if len(inputs["y"]) == len(x) else 400})
    return _post("huge JSON", {"signature_name": "add", "inputs": inputs}, statuses)


def wrong_json(chance: random.Random) -> Page:
    ragged = {"x": [[1, 2], [3]], "y": [1, 2]}
    values = [
        [], "text", 3, None, True, {}, {"instances": {}}, {"instances": [[]]}, {"instances": [{}]},
        {"signature_name": "add", "inputs": ragged},
        {"signature_name": "add", "instances": [{"x": "1", "y": 1}]},
        {"signature_name": "add", "instances": [{"x": None, "y": 1}]},
        {"signature_name": "add", "instances": [{"x": {"b64": "AAAA"}, "y": 1}]},
        {"signature_name": "add", "instances": [{"x": 10**400, "y": 1}]},
        {"signature_name": ["add"], "instances": [1]},
        {"signature_name": "nope", "instances": [1]},
        {"instances": [{"b64": "%%%"}]}, {"instances": [3]},
        {"inputs": {"examples": [{"b64": 3}]}}, {"instances": [1], "inputs": [1]},
    ]  # fmt: skip
    return _post("wrong JSON", chance.choice(values))


def bytes_that_are_no_text(chance: random.Random) -> Page:
    return _post("no UTF-8", b'{"instances": ["' + chance.randbytes(40).replace(b'"', b"") + b'"]}')


def json_not_a_number(chance: random.Random) -> Page:
    word = chance.choice([b"NaN", b"Infinity", b"-Infinity"])
    body = b'{"signature_name": "add", "instances": [{"x": %s, "y": 1}]}' % word
    return _post("not a number", body, frozenset({200}))


def wrong_path(chance: random.Random) -> Page:
    method, path, statuses = chance.choice(
        [
            ("POST", "/v1/models/nobody:predict", {404}),
            ("POST", "/v1/models/users/versions/99:predict", {404}),
            ("POST", f"/v1/models/users/versions/{10**40}:predict", {400, 404}),
            ("POST", "/v1/models/users/labels/none:predict", {400}),
            ("POST", "/v1/models/users:train", {400}),
            ("POST", "/v1/models/" + "x" * 3000 + ":predict", {404, 414}),
            ("POST", "/v1/models/%00%ff:predict", {400, 404}),
            ("GET", "/v1/models/../../etc/passwd", {400, 404}),
            ("GET", "/v2", {404}),
            ("PUT", "/v1/models/users:predict", {400, 405}),
            ("DELETE", "/v1/models/users", {400, 405}),
        ]
    )
    body = json.dumps(_honest_body(chance)).encode()
    return Page("wrong path", method, path, body, frozenset(statuses))


PAGES: tuple[Callable[[random.Random], Page], ...] = (
    cut_json, deep_json, huge_json, wrong_json, bytes_that_are_no_text, json_not_a_number,
    wrong_path,
)  # fmt: skip


_CHUNKED = b"Host: h\r\nTransfer-Encoding: chunked\r\n\r\n"
_LONG = b"Host: h\r\nContent-Length: 1000000000\r\n\r\n"
_ZEROS = bytes(1 << 16)
LARGE = frozenset({413})
_PREDICT_LINE = b"POST %s HTTP/1.1\r\n" % PREDICT.encode()

STREAMS = (
    Stream("request line", b"GET /", b"x" * (1 << 16), frozenset({414})),
    Stream("header line", b"GET /healthz HTTP/1.1\r\nX: ", b"x" * (1 << 16), LARGE),
    Stream("header lines", b"GET /healthz HTTP/1.1\r\n", b"X: y\r\n" * 9_999, LARGE),
    Stream("long body", _PREDICT_LINE + _LONG, _ZEROS, LARGE),
    Stream("body of no page", b"POST /nothing HTTP/1.1\r\n" + _LONG, _ZEROS, frozenset({404})),
    Stream("body of a GET", b"GET /healthz HTTP/1.1\r\n" + _LONG, _ZEROS, frozenset({200})),
    Stream("large chunk", _PREDICT_LINE + _CHUNKED + b"40000000\r\n", _ZEROS, LARGE),
    Stream("many chunks", _PREDICT_LINE + _CHUNKED, b"ffff\r\n" + _ZEROS[1:] + b"\r\n", LARGE),
    Stream("chunk size", _PREDICT_LINE + _CHUNKED, b"0" * (1 << 16), BAD),
    Stream("trailers", _PREDICT_LINE + _CHUNKED + b"0\r\n", b"X: y\r\n" * 9_999, BAD),
    Stream("no chunk size", _PREDICT_LINE + _CHUNKED + b"1g\r\n", _ZEROS, BAD),
    Stream("chunk without end", _PREDICT_LINE + _CHUNKED + b"1\r\nxx\r\n", _ZEROS, BAD),
)


def giants() -> tuple[Call, Page]:
    """The largest requests there are, which are answered."""
    x = np.ones(LONGEST * 10, np.float32)
    inputs = {"x": [1.5] * LONGEST, "y": [1.5] * LONGEST}
    return (
        _predict("large", predict_request(x=x, y=x), FINE),
        _post("large", {"signature_name": "add", "inputs": inputs}, frozenset({200})),
    )
