"""The gRPC front: methods, message limits, the thread that watches the directories."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent import futures

import grpc
from google.protobuf import message

from serving import errors, protos, tensors
from serving.server import metadata, predict
from serving.server.models import Models, invalid

_OPTIONS = (
    ("grpc.max_receive_message_length", tensors.MAX_BYTES),
    ("grpc.max_send_message_length", tensors.MAX_BYTES),
    ("grpc.so_reuseport", 0),  # a port already taken is an error, not a second server behind it
)

Method = Callable[[Models, message.Message, float], message.Message]


class Server:
    """Serves models until stopped.

    Attributes:
      address: `host:port`, with the port the system gave if 0 was asked for.
    """

    def __init__(
        self,
        models: Models,
        *,
        host: str,
        port: int,
        max_threads: int,
        content: bool = False,
    ):
        """Binds the port and answers from then on.

        Args:
          models: what is served.
          host: the interface to listen on.
          port: 0 lets the system choose.
          max_threads: requests answered at the same time; further ones queue.
          content: `tensor_content` in responses instead of typed fields.

        Raises:
          OSError: the port can't be bound.
        """
        self._models = models
        self._stop = threading.Event()
        self._grpc = grpc.server(futures.ThreadPoolExecutor(max_threads), options=_OPTIONS)
        self._grpc.add_generic_rpc_handlers(_handlers(models, content))
        try:
            bound = self._grpc.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise OSError(f"can't listen on {host}:{port}: is it taken?") from None
        self.address = f"{host}:{bound}"
        self._grpc.start()
        logging.info("listening on %s", self.address)

    def watch(self, interval: float) -> threading.Thread:
        """Starts the thread that loads and unloads versions.

        Args:
          interval: seconds between looks at the directories; at 0 one look is all.
        """
        thread = threading.Thread(target=self._watch, args=(interval,), daemon=True)
        thread.start()
        return thread

    def _watch(self, interval: float) -> None:
        announced: set[str] = set()
        while not self._stop.is_set():
            for model in self._models:
                model.poll()
                if model.available and model.name not in announced:
                    announced.add(model.name)
                    logging.info("ready: %s on %s", model.name, self.address)
            if not interval:
                return
            self._stop.wait(interval)

    def stop(self, grace: float) -> None:
        """Refuses new requests, gives those under way `grace` seconds to finish."""
        self._stop.set()
        self._grpc.stop(grace).wait()


def _handlers(models: Models, content: bool) -> tuple[grpc.GenericRpcHandler, ...]:
    services: dict[str, dict[str, tuple[type[message.Message], Method]]] = {
        "tensorflow.serving.PredictionService": {
            "Predict": (
                protos.PredictRequest,
                functools.partial(predict.predict, content=content),
            ),
            "GetModelMetadata": (protos.GetModelMetadataRequest, metadata.get_model_metadata),
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": (protos.GetModelStatusRequest, metadata.get_model_status),
        },
    }
    return tuple(
        grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(_answer(models, request_class, method))
                for name, (request_class, method) in methods.items()
            },
        )
        for service, methods in services.items()
    )


def _answer(
    models: Models, request_class: type[message.Message], method: Method
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """Bytes in, bytes out; our errors become gRPC statuses."""

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            left = context.time_remaining()
            deadline = math.inf if left is None else time.monotonic() + left
            return method(models, request_class.FromString(data), deadline).SerializeToString()
        except message.DecodeError:
            name = request_class.DESCRIPTOR.name
            failure = invalid(f"the request is no valid {name}")
        except errors.ServingError as error:
            failure = error
        context.abort(failure.code, failure.message)
        raise AssertionError("abort raises")

    return answer
