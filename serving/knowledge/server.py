"""The gRPC service `universal.knowledge.v1.KnowledgeCenter` over a store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent import futures

import grpc
import numpy as np
from google.protobuf import message

from serving import errors, protos, tensors
from serving.knowledge.center import lookup
from serving.knowledge.failures import invalid
from serving.knowledge.mapped_store import MappedStore
from serving.knowledge.store import ITEM, USER, Store

SERVICE = "universal.knowledge.v1.KnowledgeCenter"

MAX_BATCH = 65_536
"""Quadruples a request may ask for; 64 MB of answer at 4 times 64 floats."""

_OPTIONS = (
    ("grpc.max_receive_message_length", tensors.MAX_BYTES),
    ("grpc.max_send_message_length", tensors.MAX_BYTES),
    ("grpc.so_reuseport", 0),  # a port already taken is an error, not a second server behind it
)

Method = Callable[[Store, message.Message], message.Message]


class Server:
    """Serves a store until stopped.

    Attributes:
      address: `host:port`, with the port the system gave if 0 was asked for.
    """

    def __init__(self, store: Store, *, host: str, port: int, max_threads: int):
        """Binds the port and answers from then on. There is no authentication.

        Raises:
          OSError: the port can't be bound.
        """
        self._store = store
        self._stopping = threading.Event()
        self._grpc = grpc.server(futures.ThreadPoolExecutor(max_threads), options=_OPTIONS)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(_answer(store, request_class, method))
            for name, (request_class, method) in _METHODS.items()
        }
        self._grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        try:
            bound = self._grpc.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise OSError(f"can't listen on {host}:{port}: is it taken?") from None
        self.address = f"{host}:{bound}"
        self._grpc.start()
        logging.info("listening on %s", self.address)

    def watch(self, interval: float) -> None:
        """Starts the thread that picks up versions published by other processes.

        Args:
          interval: seconds between looks. (Redis tells each batch its versions: nothing to do.)
        """
        if isinstance(self._store, MappedStore):
            threading.Thread(target=self._watch, args=(self._store, interval), daemon=True).start()

    def _watch(self, store: MappedStore, interval: float) -> None:
        versions: tuple[int, ...] = ()
        damaged: dict[int, errors.ServingError] = {}
        while True:
            if store.versions() != versions:
                versions = store.versions()
                logging.info("versions: %s", ", ".join(map(str, versions)) or "none")
            for version, error in store.damaged().items():
                if version not in damaged:
                    logging.error("version %d can't be served: %s", version, error)
            damaged = store.damaged()
            if self._stopping.wait(interval):
                return
            store.refresh()

    def stop(self, grace: float) -> None:
        """Refuses new requests, gives those under way `grace` seconds to finish."""
        self._stopping.set()
        self._grpc.stop(grace).wait()


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


def _answer(
    store: Store, request_class: type[message.Message], method: Method
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """Bytes in, bytes out; our errors become gRPC statuses."""

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return method(store, request_class.FromString(data)).SerializeToString()
        except message.DecodeError:
            failure = invalid(f"the request is no valid {request_class.DESCRIPTOR.name}")
        except errors.ServingError as error:
            failure = error
        context.abort(failure.code, failure.message)
        raise AssertionError("abort raises")

    return answer
