"""The gRPC port: PredictionService, ModelService and grpc.health.v1."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent import futures

import grpc
from google.protobuf import message
from grpc_health.v1 import health_pb2_grpc

from serving import errors
from serving.server.api import Api
from serving.server.health import Health


class GrpcPort:
    """Answers until the process ends.

    Attributes:
      address: `host:port`, with the port the system gave if 0 was asked for.
    """

    def __init__(
        self,
        api: Api,
        health: Health | None,
        *,
        host: str,
        port: int,
        max_threads: int,
        max_queued: int,
        max_bytes: int,
        socket_path: str = "",
        channel_arguments: Sequence[tuple[str, int | str]] = (),
        credentials: grpc.ServerCredentials | None = None,
    ):
        """Binds the port and answers from then on.

        Args:
          health: answered as grpc.health.v1, unless None.
          host: the interface to listen on.
          port: 0 lets the system choose.
          max_threads: requests answered at the same time.
          max_queued: requests that may wait for one of them; more is RESOURCE_EXHAUSTED.
          max_bytes: the largest request and response.
          socket_path: a UNIX socket to answer on too.
          channel_arguments: further options of gRPC's core.
          credentials: TLS; none unless given.

        Raises:
          OSError: the port or the socket can't be bound.
        """
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_threads, "grpc"),
            maximum_concurrent_rpcs=max_threads + max_queued,
            options=(
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", max_bytes),
                # A port already taken is an error, not a second server behind it.
                ("grpc.so_reuseport", 0),
                *channel_arguments,
            ),
        )
        self._server.add_generic_rpc_handlers(_handlers(api))
        if health:
            health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self._server)
        self.address = f"{host}:{self._bind(f'{host}:{port}', credentials)}"
        if socket_path:
            self._bind(f"unix:{socket_path}", credentials)
        self._server.start()

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise OSError(f"can't listen on {address}: is it taken?") from None


def _handlers(api: Api) -> list[grpc.GenericRpcHandler]:
    services: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for name, method in api.methods.items():
        handler = grpc.unary_unary_rpc_method_handler(_answer(api, name))
        services.setdefault(method.service, {})[name] = handler
    return [grpc.method_handlers_generic_handler(*item) for item in services.items()]


def _answer(api: Api, name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """Bytes in, bytes out; our errors become gRPC statuses."""
    request_class = api.methods[name].request_class

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        left = context.time_remaining()
        deadline = math.inf if left is None else time.monotonic() + left
        try:
            request = request_class.FromString(data)
            return api.call(name, request, "GRPC", deadline).SerializeToString()
        except message.DecodeError:
            failure = errors.invalid(f"the request is no valid {request_class.DESCRIPTOR.name}")
            api.count_unreadable(name, "GRPC", failure)
        except errors.ServingError as error:
            failure = error
        context.abort(failure.code, _short(failure.message))
        raise AssertionError("abort raises")

    return answer


_MAX_MESSAGE = 2000


def _short(text: str) -> str:
    """Messages quote what was sent, and travel in a header of at most 8 KB, percent-encoded."""
    if len(text.encode()) <= _MAX_MESSAGE:
        return text
    return text.encode()[:_MAX_MESSAGE].decode(errors="ignore") + "…"
