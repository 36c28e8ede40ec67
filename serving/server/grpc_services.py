"""The API as gRPC services: PredictionService and ModelService."""

from __future__ import annotations

import functools
import math
import time

import grpc
from google.protobuf import message

from serving.rpc.port import unary
from serving.server.api import Api


def services(api: Api) -> dict[str, dict[str, grpc.RpcMethodHandler]]:
    """Service -> method's name -> method."""
    by_service: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for name, method in api.methods.items():
        by_service.setdefault(method.service, {})[name] = unary(
            method.request_class,
            functools.partial(_answer, api, name),
            functools.partial(api.count_unreadable, name, "GRPC"),
        )
    return by_service


def _answer(
    api: Api, name: str, request: message.Message, context: grpc.ServicerContext
) -> message.Message:
    left = context.time_remaining()
    deadline = math.inf if left is None else time.monotonic() + left
    return api.call(name, request, "GRPC", deadline)
