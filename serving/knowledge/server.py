"""The gRPC service `universal.knowledge.v1.KnowledgeCenter` over a store, and its health."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable

import grpc
import numpy as np
from google.protobuf import message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer

from serving import errors, protos, tensors
from serving.errors import invalid
from serving.knowledge.center import lookup
from serving.knowledge.store import ITEM, USER, Store
from serving.knowledge.watch import Watch
from serving.rpc.gate import Gate
from serving.rpc.port import GrpcPort, unary

SERVICE = "universal.knowledge.v1.KnowledgeCenter"

MAX_BATCH = 65_536
"""Quadruples a request may ask for; 64 MB of answer at 4 times 64 floats."""

Method = Callable[[Store, message.Message], message.Message]


class Server:
    """Serves a store until the process ends.

    Attributes:
      address: `host:port`, with the port the system gave if 0 was asked for.
    """

    def __init__(
        self,
        store: Store,
        *,
        host: str,
        port: int,
        max_threads: int,
        max_queued: int,
        credentials: grpc.ServerCredentials | None = None,
    ):
        """Binds the port and answers from then on. Who may connect may ask, and delete.

        Args:
          max_threads: requests answered at the same time.
          max_queued: requests that may wait for one of them; more is RESOURCE_EXHAUSTED.
          credentials: TLS; none unless given.

        Raises:
          OSError: the port can't be bound.
        """
        self._gate = Gate()
        self._health = HealthServicer()
        self._watch = Watch(store, self._tell)
        self._watch.look()
        methods = {
            name: unary(request_class, functools.partial(_answer, store, self._gate, method))
            for name, (request_class, method) in _METHODS.items()
        }
        self._port = GrpcPort(
            {SERVICE: methods},
            self._health,
            host=host,
            port=port,
            max_threads=max_threads,
            max_queued=max_queued,
            max_bytes=tensors.MAX_BYTES,
            credentials=credentials,
        )
        self.address = self._port.address
        logging.info("listening on %s", self.address)

    def watch(self, interval: float) -> None:
        """Starts the thread that looks for versions every `interval` seconds."""
        threading.Thread(target=self._watch.run, args=(interval,), daemon=True).start()

    def drain(self, seconds: float) -> None:
        """Refuses new requests, as UNAVAILABLE, and gives those under way `seconds`."""
        self._health.enter_graceful_shutdown()
        self._gate.drain(seconds)

    def _tell(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING
        for service in ("", SERVICE):
            self._health.set(
                service, status if ready else health_pb2.HealthCheckResponse.NOT_SERVING
            )


def _answer(
    store: Store,
    gate: Gate,
    method: Method,
    request: message.Message,
    context: grpc.ServicerContext,
) -> message.Message:
    try:
        with gate:
            return method(store, request)
    except errors.ServingError:
        raise
    except Exception:
        logging.exception("a request failed")
        raise errors.ServingError(
            grpc.StatusCode.INTERNAL, "internal error; the server's log has it"
        ) from None


def _lookup(store: Store, request: message.Message) -> message.Message:
    largest = max(map(len, (request.users, request.items, request.categories)))
    if largest > MAX_BATCH:
        raise invalid(f"{largest} quadruples in a request; at most {MAX_BATCH}")
    answer = lookup(
        store,
        users=request.users,
        items=request.items,
        categories=request.categories,
        version=request.version.value if request.HasField("version") else None,
    )
    response = protos.LookupResponse(version=answer.version)
    for kind, vectors in answer.vectors.items():
        _write(getattr(response, kind), vectors, answer.found[kind])
    if request.product:
        _write(response.product, answer.product(), answer.found[USER] & answer.found[ITEM])
    return response


def _write(proto: message.Message, vectors: np.ndarray, found: np.ndarray) -> None:
    proto.dim = vectors.shape[1]
    proto.values = vectors.astype("<f4", copy=False).tobytes()
    proto.found = np.packbits(found, bitorder="little").tobytes()


def _list_versions(store: Store, request: message.Message) -> message.Message:
    return protos.ListVersionsResponse(versions=store.versions())


def _delete_user(store: Store, request: message.Message) -> message.Message:
    return protos.DeleteUserResponse(deleted=store.delete_user(request.user))


_METHODS: dict[str, tuple[type[message.Message], Method]] = {
    "Lookup": (protos.LookupRequest, _lookup),
    "ListVersions": (protos.ListVersionsRequest, _list_versions),
    "DeleteUser": (protos.DeleteUserRequest, _delete_user),
}
