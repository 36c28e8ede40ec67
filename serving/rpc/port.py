"""A gRPC port: services of unary methods, and grpc.health.v1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures

import grpc
from google.protobuf import message
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from serving import errors


class GrpcPort:
    """Answers until the process ends.

    Attributes:
      address: `host:port`, with the port the system gave if 0 was asked for.
    """

    def __init__(
        self,
        services: Mapping[str, Mapping[str, grpc.RpcMethodHandler]],
        health: HealthServicer | None,
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
          services: name -> method's name -> method (`unary`).
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
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(*service) for service in services.items()]
        )
        if health:
            health_pb2_grpc.add_HealthServicer_to_server(health, self._server)
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
            raise OSError(f"can't listen on {address}") from None


def unary(
    request_class: type[message.Message],
    answer: Callable[[message.Message, grpc.ServicerContext], message.Message],
    on_unreadable: Callable[[errors.ServingError], None] = lambda error: None,
) -> grpc.RpcMethodHandler:
    """A method of a service: bytes in, bytes out; our errors become gRPC statuses.

    Args:
      answer: raises `ServingError`, the code and message to answer with instead.
      on_unreadable: told of a request that is no `request_class`.
    """

    def handle(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return answer(request_class.FromString(data), context).SerializeToString()
        except message.DecodeError:
            failure = errors.invalid(f"the request is no valid {request_class.DESCRIPTOR.name}")
            on_unreadable(failure)
        except errors.ServingError as error:
            failure = error
        context.abort(failure.code, _short(failure.message))
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(handle)


_MAX_MESSAGE = 2000


def _short(text: str) -> str:
    """Messages quote what was sent, and travel in a header of at most 8 KB, percent-encoded."""
    if len(text.encode()) <= _MAX_MESSAGE:
        return text
    return text.encode()[:_MAX_MESSAGE].decode(errors="ignore") + "…"
