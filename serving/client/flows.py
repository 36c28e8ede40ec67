"""What a model server is asked: the requests, and what is made of the answers (`exchange.Flow`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import grpc
import numpy as np
from google.protobuf import message

from serving import errors, protos, tensors
from serving.client import rows
from serving.client.exchange import Call, Flow, Pause, Retries, clear, exchange
from serving.client.features import feature_specs, typed_example
from serving.client.signatures import Signature, read_signatures, typed_inputs

DEFAULT_SIGNATURE = "serving_default"

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
_UNFIT = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
_NOT_YET = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
"""What a server answers, or nobody does, of a model that may come yet."""
_LOOK_SECONDS = 0.2
_Pieces: TypeAlias = Sequence[Mapping[str, np.ndarray]]
_SERVER = (
    "model server",
    "python -m tfx_pipeline serve --output=RUN, or python -m serving.server --model_base_path=DIR",
)


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    version: int
    state: str
    """START, LOADING, AVAILABLE, UNLOADING or END."""
    error: str
    """Why loading failed; '' if it didn't."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Which model is asked, and how long the caller waits (seconds)."""

    name: str
    version: int | None
    timeout: float

    def address(self, request: message.Message) -> message.Message:
        request.model_spec.name = self.name
        if self.version is not None:
            request.model_spec.version.value = self.version
        return request


class Flows:
    """The flows of one client, with the signatures it learnt."""

    def __init__(self, target: str, retries: Retries, max_batch_rows: int | None):
        self._target = target
        self._retries = retries
        self._max_batch_rows = max_batch_rows
        self._signatures: dict[tuple[str, int | None], dict[str, Signature]] = {}

    def predict(
        self, model: Model, inputs: Mapping[str, object], signature: str, outputs: Sequence[str]
    ) -> Flow[dict[str, np.ndarray]]:
        deadline = time.monotonic() + model.timeout

        def pieces_for(signatures: Mapping[str, Signature]) -> _Pieces:
            arrays = typed_inputs(signatures, model.name, signature, inputs)
            return rows.split(arrays, self._max_batch_rows)

        pieces, answers = yield from self._predict(model, pieces_for, signature, outputs, deadline)
        if len(answers) == 1:
            return answers[0]
        return rows.join(answers, [len(next(iter(piece.values()))) for piece in pieces])

    def score(
        self,
        model: Model,
        users: Sequence[Mapping[str, object]],
        signature: str,
        outputs: Sequence[str],
    ) -> Flow[list[dict[str, np.ndarray]]]:
        deadline = time.monotonic() + model.timeout

        def pieces_for(signatures: Mapping[str, Signature]) -> _Pieces:
            specs = feature_specs(signatures, model.name)
            written = [typed_example(specs, features) for features in users]
            return [{"examples": np.array([one], object)} for one in written]

        _, answers = yield from self._predict(model, pieces_for, signature, outputs, deadline)
        return [{name: array[0] for name, array in answer.items()} for answer in answers]

    def metadata(self, model: Model) -> Flow[dict[str, Signature]]:
        return (yield from self._learn(model, time.monotonic() + model.timeout))

    def status(self, model: Model) -> Flow[list[VersionStatus]]:
        request = model.address(protos.GetModelStatusRequest())
        call = Call(_STATUS, request, protos.GetModelStatusResponse)
        (response,) = yield from self._exchange([call], model, time.monotonic() + model.timeout)
        states = protos.ModelVersionStatus.State
        return [
            VersionStatus(s.version, states.Name(s.state), s.status.error_message)
            for s in response.model_version_status
        ]

    def wait_available(self, model: Model) -> Flow[None]:
        deadline = time.monotonic() + model.timeout
        while True:
            # A second at least, that the last look tells of the model and not of the time.
            left = max(1.0, deadline - time.monotonic())
            failure = None
            try:
                statuses = yield from self.status(dataclasses.replace(model, timeout=left))
                if any(status.state == "AVAILABLE" for status in statuses):
                    return
                seen = ", ".join(map(_told, statuses))
            except errors.ServingError as error:
                if error.code not in _NOT_YET:
                    raise
                failure, seen = error, error.message
            if time.monotonic() + _LOOK_SECONDS >= deadline:
                raise errors.ServingError(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"model {model.name!r} isn't available after {model.timeout:g} s: {seen}",
                ) from failure
            yield Pause(_LOOK_SECONDS)

    def _predict(
        self,
        model: Model,
        pieces_for: Callable[[Mapping[str, Signature]], _Pieces],
        signature: str,
        outputs: Sequence[str],
        deadline: float,
    ) -> Flow[tuple[_Pieces, list[dict[str, np.ndarray]]]]:
        """The requests made for the model's signatures, and their answers.

        Signatures learnt earlier may be those of a version that is gone: where a request doesn't
        fit, be it found here or by the server, they are learnt again, and if they changed, so are
        the requests made.
        """
        known = self._signatures.get((model.name, model.version))
        if known is not None:
            try:
                pieces = pieces_for(known)
                return pieces, (yield from self._send(model, pieces, signature, outputs, deadline))
            except errors.ServingError as error:
                if error.code not in _UNFIT or known == (yield from self._learn(model, deadline)):
                    raise
        else:
            yield from self._learn(model, deadline)
        pieces = pieces_for(self._signatures[model.name, model.version])
        return pieces, (yield from self._send(model, pieces, signature, outputs, deadline))

    def _send(
        self,
        model: Model,
        pieces: _Pieces,
        signature: str,
        outputs: Sequence[str],
        deadline: float,
    ) -> Flow[list[dict[str, np.ndarray]]]:
        calls = []
        for piece in pieces:
            request = model.address(protos.PredictRequest(output_filter=outputs))
            request.model_spec.signature_name = signature
            for name, array in piece.items():
                tensors.to_proto(array, request.inputs[name])
            calls.append(Call(_PREDICT, request, protos.PredictResponse))
        responses = yield from self._exchange(calls, model, deadline)
        return [
            {name: tensors.to_array(proto) for name, proto in tensors.in_order(response.outputs)}
            for response in responses
        ]

    def _learn(self, model: Model, deadline: float) -> Flow[dict[str, Signature]]:
        request = protos.GetModelMetadataRequest(metadata_field=["signature_def"])
        call = Call(_METADATA, model.address(request), protos.GetModelMetadataResponse)
        (response,) = yield from self._exchange([call], model, deadline)
        signatures = read_signatures(response)
        self._signatures[model.name, model.version] = signatures
        return signatures

    def _exchange(self, calls: Sequence[Call], model: Model, deadline: float) -> Flow[list]:
        try:
            return (yield from exchange(calls, deadline, self._retries))
        except grpc.RpcError as error:
            raise clear(error, self._target, model.timeout, *_SERVER) from None


def _told(status: VersionStatus) -> str:
    return f"version {status.version} is {status.state}" + (status.error and f" ({status.error})")
