"""TF Serving's REST API (g3doc/api_rest.md, http_rest_api_handler.cc), as a WSGI application."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grpc
from google.protobuf import json_format, message

from serving import protos
from serving.errors import ServingError, invalid
from serving.server import json_examples, json_predict, json_values
from serving.server import metrics as metrics_module
from serving.server.api import Api
from serving.server.health import Health
from serving.server.metadata import SIGNATURE_DEF
from serving.server.metrics import Metrics
from serving.server.predict import DEFAULT_SIGNATURE
from serving.server.rest_body import Body, TooLarge

_MODELS = r"(?i:/v1/models)"
_NAME = r"/(?P<name>[^/:]+)"
_VERSION = r"(?:(?i:/versions)/(?P<version>\d+)|(?i:/labels)/(?P<label>[^/:]+))?"
_INFERENCE = re.compile(_MODELS + _NAME + _VERSION + ":(?P<method>(?i:classify|regress|predict))")
_INFORMATION = re.compile(f"{_MODELS}(?:{_NAME})?{_VERSION}(?P<metadata>(?i:/metadata))?")

_HTTP_CODES = {
    grpc.StatusCode.CANCELLED: "499 Client Closed Request",
    grpc.StatusCode.INVALID_ARGUMENT: "400 Bad Request",
    grpc.StatusCode.FAILED_PRECONDITION: "400 Bad Request",
    grpc.StatusCode.OUT_OF_RANGE: "400 Bad Request",
    grpc.StatusCode.UNAUTHENTICATED: "401 Unauthorized",
    grpc.StatusCode.PERMISSION_DENIED: "403 Forbidden",
    grpc.StatusCode.NOT_FOUND: "404 Not Found",
    grpc.StatusCode.ALREADY_EXISTS: "409 Conflict",
    grpc.StatusCode.ABORTED: "409 Conflict",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "429 Too Many Requests",
    grpc.StatusCode.UNIMPLEMENTED: "501 Not Implemented",
    grpc.StatusCode.UNAVAILABLE: "503 Service Unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "504 Gateway Timeout",
}
"""http_server.cc, ToHTTPStatusCode; every other code is 500."""
_INTERNAL = "500 Internal Server Error"

_JSON = "application/json"
_CORS = [
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "GET,POST"),
    ("Access-Control-Allow-Headers", "Content-Type"),
]


class _Response(NamedTuple):
    status: str
    body: bytes = b""
    content_type: str = _JSON


class RestApp:
    """A WSGI application. Thread-safe."""

    def __init__(
        self,
        api: Api,
        health: Health,
        metrics: Metrics,
        *,
        max_bytes: int,
        timeout: float,
        metrics_path: str = "",
        cors: bool = False,
    ):
        """
        Args:
          max_bytes: of a request's body; more is 413.
          timeout: seconds after which nobody waits for an answer; 0 is for ever.
          metrics_path: where Prometheus finds `metrics`; nowhere unless given.
          cors: lets browsers ask from pages of any origin.
        """
        self._api = api
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._cors = cors
        self._pages: dict[str, Callable[[], _Response]] = {
            "/healthz": lambda: _Response("200 OK", b"ok\n", "text/plain"),
            "/readyz": lambda: _ready_page(health),
        }
        if metrics_path:
            self._pages[metrics_path] = lambda: _Response(
                "200 OK", metrics.page(), metrics_module.CONTENT_TYPE
            )

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        body = Body(environ, self._max_bytes)
        try:
            response = self._answer(environ, body)
        except TooLarge:
            response = _error(
                "413 Request Entity Too Large", f"the body is larger than {self._max_bytes} bytes"
            )
        except ServingError as error:
            response = _error(_HTTP_CODES.get(error.code, _INTERNAL), error.message)
        except OSError:  # The client is gone or says nothing: cheroot knows what to do.
            raise
        except Exception:
            logging.exception("%s failed", environ["PATH_INFO"])
            response = _error(_INTERNAL, "internal error; the server's log has it")
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
        ]
        if not body.finished:
            headers.append(("Connection", "close"))
        start_response(response.status, headers + (_CORS if self._cors else []))
        return [response.body]

    def _answer(self, environ: dict[str, Any], body: Body) -> _Response:
        verb = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")  # PEP 3333
        if verb == "GET" and path in self._pages:
            return self._pages[path]()
        if verb == "OPTIONS" and self._cors:
            return _Response("200 OK")
        if not path.lower().startswith("/v1/"):
            return _error("404 Not Found", f"no such page: {path}")
        if verb == "POST" and (match := _INFERENCE.fullmatch(path)):
            return self._infer(match, body)
        if verb == "GET" and (match := _INFORMATION.fullmatch(path)):
            return _json(self._describe(match))
        raise invalid(f"Malformed request: {verb} {path}")

    def _infer(self, match: re.Match, body: Body) -> _Response:
        deadline = time.monotonic() + self._timeout if self._timeout else math.inf
        name = match["method"].capitalize()
        try:
            request, write = self._read(name, match, json_values.parse(body.read()))
        except ServingError as error:
            self._api.count_unreadable(name, "REST", error)
            raise
        return _json(write(self._api.call(name, request, "REST", deadline)))

    def _read(
        self, name: str, match: re.Match, document: dict[str, Any]
    ) -> tuple[message.Message, Callable[[message.Message], dict[str, Any]]]:
        """The request, and what writes its response as JSON."""
        if name == "Predict":
            return self._read_predict(match, document)
        if name == "Classify":
            request = _examples_request(protos.ClassificationRequest, match, document)
            return request, lambda answer: json_examples.write_classifications(answer.result)
        request = _examples_request(protos.RegressionRequest, match, document)
        return request, lambda answer: json_examples.write_regressions(answer.result)

    def _read_predict(
        self, match: re.Match, document: dict[str, Any]
    ) -> tuple[message.Message, Callable[[message.Message], dict[str, Any]]]:
        request = protos.PredictRequest()
        _write_spec(match, request.model_spec)
        name = request.model_spec.signature_name = json_values.signature_name(document)
        signature = self._signature(request.model_spec, name or DEFAULT_SIGNATURE)
        is_row = json_predict.read_inputs(document, signature, request.inputs)
        return request, lambda answer: json_predict.write_outputs(answer.outputs, is_row=is_row)

    def _signature(self, spec: message.Message, name: str) -> message.Message:
        with self._api.models.use(spec) as used:
            if name not in used.servable.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            return used.servable.signatures[name]

    def _describe(self, match: re.Match) -> dict[str, Any]:
        if not match["name"]:
            raise invalid("Missing model name in request.")
        if match["metadata"]:
            request = protos.GetModelMetadataRequest(metadata_field=[SIGNATURE_DEF])
            _write_spec(match, request.model_spec)
            return _metadata_json(self._api.call("GetModelMetadata", request, "REST"))
        request = protos.GetModelStatusRequest()
        _write_spec(match, request.model_spec)
        return _to_dict(self._api.call("GetModelStatus", request, "REST"))


def _ready_page(health: Health) -> _Response:
    if health.ready:
        return _Response("200 OK", b"ok\n", "text/plain")
    return _Response("503 Service Unavailable", b"not every model is available\n", "text/plain")


def _write_spec(match: re.Match, spec: message.Message) -> None:
    spec.name = match["name"]
    if match["version"]:
        if int(match["version"]) >= 2**63:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = match["label"]


def _examples_request(
    request_class: type[message.Message], match: re.Match, document: dict
) -> message.Message:
    request = request_class()
    _write_spec(match, request.model_spec)
    request.model_spec.signature_name = json_values.signature_name(document)
    json_examples.read_examples(document, request.input)
    return request


def _metadata_json(response: message.Message) -> dict[str, Any]:
    signatures = protos.SignatureDefMap.FromString(response.metadata[SIGNATURE_DEF].value)
    spec = response.model_spec
    return {
        "model_spec": {
            "name": spec.name,
            "signature_name": "",
            "version": str(spec.version.value),
        },
        "metadata": {SIGNATURE_DEF: _to_dict(signatures)},
    }


def _to_dict(proto: message.Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        proto, including_default_value_fields=True, preserving_proto_field_name=True
    )


def _json(document: dict[str, Any]) -> _Response:
    return _Response("200 OK", json.dumps(document).encode())


def _error(status: str, text: str) -> _Response:
    return _Response(status, json.dumps({"error": text}).encode())
