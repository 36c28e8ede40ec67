"""The API's methods by name, as both ports call them: counted, logged, failures made legible."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import grpc
from google.protobuf import message

from serving import errors, protos
from serving.rpc.gate import Gate
from serving.server import classify, metadata, multi_inference, predict, regress
from serving.server.manager import Manager
from serving.server.metrics import Metrics
from serving.server.models import Models
from serving.server.request_log import RequestLog

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"


class Method(NamedTuple):
    """One method of the API.

    Attributes:
      service: its gRPC service.
      request_class: what it takes.
      answer: `answer(models, request, deadline)` is the response; raises `ServingError`.
    """

    service: str
    request_class: type[message.Message]
    answer: Callable[[Models, message.Message, float], message.Message]


class Api:
    """Thread-safe.

    Attributes:
      models: what is served.
      methods: name -> Method.
      gate: every request passes it.
    """

    def __init__(
        self,
        manager: Manager,
        metrics: Metrics,
        log: RequestLog | None = None,
        *,
        content: bool = False,
    ):
        """
        Args:
          log: where a sample of the requests is written down.
          content: `tensor_content` in responses instead of typed fields.
        """
        self.models = manager.models
        self.gate = Gate()
        self._metrics = metrics
        self._log = log
        answer_predict = functools.partial(predict.predict, content=content)
        answer_reload = functools.partial(reload_config, manager)
        self.methods = {
            "Predict": Method(PREDICTION_SERVICE, protos.PredictRequest, answer_predict),
            "Classify": Method(PREDICTION_SERVICE, protos.ClassificationRequest, classify.classify),
            "Regress": Method(PREDICTION_SERVICE, protos.RegressionRequest, regress.regress),
            "MultiInference": Method(
                PREDICTION_SERVICE, protos.MultiInferenceRequest, multi_inference.multi_inference
            ),
            "GetModelMetadata": Method(
                PREDICTION_SERVICE, protos.GetModelMetadataRequest, metadata.get_model_metadata
            ),
            "GetModelStatus": Method(
                MODEL_SERVICE, protos.GetModelStatusRequest, metadata.get_model_status
            ),
            "HandleReloadConfigRequest": Method(
                MODEL_SERVICE, protos.ReloadConfigRequest, answer_reload
            ),
        }

    def call(
        self, name: str, request: message.Message, entrypoint: str, deadline: float = math.inf
    ) -> message.Message:
        """Answers a request.

        Args:
          name: a key of `methods`.
          request: of its `request_class`.
          entrypoint: the port it came by, GRPC or REST.
          deadline: a `time.monotonic()` moment after which nobody waits for the answer.

        Raises:
          errors.ServingError: the code and message to answer with instead.
        """
        start = time.perf_counter()
        response, code = None, grpc.StatusCode.OK
        try:
            with self.gate:
                response = self.methods[name].answer(self.models, request, deadline)
            return response
        except errors.ServingError as error:
            code = error.code
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            logging.exception("%s failed", name)
            raise errors.ServingError(code, "internal error; the server's log has it") from None
        finally:
            self._observe(name, entrypoint, request, response, code, time.perf_counter() - start)

    def count_unreadable(self, name: str, entrypoint: str, error: errors.ServingError) -> None:
        """A request that a port refuses before there is anything to `call` with."""
        self._metrics.observe(name, entrypoint, "", "", error.code, 0.0)

    def _observe(
        self,
        name: str,
        entrypoint: str,
        request: message.Message,
        response: message.Message | None,
        code: grpc.StatusCode,
        seconds: float,
    ) -> None:
        answered = None if response is None else _model_spec(response)
        spec = answered or _model_spec(request)
        # Only names that are served: clients may ask for any, and each would be a new series.
        model = spec.name if spec and self.models.find(spec) else ""
        signature = answered.signature_name if answered else ""
        self._metrics.observe(name, entrypoint, model, signature, code, seconds)
        if self._log and self._log.is_sampled():
            self._log.write(
                method=name,
                entrypoint=entrypoint,
                model=spec.name if spec else "",
                version=spec.version.value if spec else 0,
                signature=spec.signature_name if spec else "",
                batch_size=_batch_size(request),
                milliseconds=round(seconds * 1000, 3),
                code=code.name,
            )


def reload_config(
    manager: Manager, models: Models, request: message.Message, deadline: float = math.inf
) -> message.Message:
    """Answers a ReloadConfigRequest once its models are served (model_service_impl.cc).

    Raises:
      errors.ServingError: as `Manager.reload`.
    """
    manager.reload(request.config)
    response = protos.ReloadConfigResponse()
    response.status.error_code = 0
    return response


def _model_spec(proto: message.Message) -> message.Message | None:
    """Whose model it is about: a MultiInference message has one a task."""
    if hasattr(proto, "model_spec"):
        return proto.model_spec
    for item in (*getattr(proto, "tasks", ()), *getattr(proto, "results", ())):
        return item.model_spec
    return None


def _batch_size(request: message.Message) -> int:
    """Rows of the first input, or examples; 0 where a request has neither."""
    if hasattr(request, "inputs"):
        for tensor in request.inputs.values():
            dims = tensor.tensor_shape.dim
            return dims[0].size if dims else 1
    elif hasattr(request, "input"):
        kind = request.input.WhichOneof("kind")
        return len(getattr(request.input, kind).examples) if kind else 0
    return 0
