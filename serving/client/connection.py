"""A channel to one server that runs flows (`exchange.py`), by waiting or by awaiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from serving import errors, tensors
from serving.client.exchange import Call, Flow, Outcome, Pause, Send, T
from serving.client.tls import Tls

_OPTIONS = (
    ("grpc.max_receive_message_length", tensors.MAX_BYTES),
    ("grpc.max_send_message_length", tensors.MAX_BYTES),
    # gRPC's own second before a new attempt to connect would outlast the retries.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


class Connection:
    """Waits in the calling thread. Made at the first call, then reused; thread-safe."""

    def __init__(self, target: str, tls: Tls | None):
        self._target = target
        self._channel = _channel(grpc, target, tls)
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable] = {}

    def run(self, flow: Flow[T]) -> T:
        """Carries a flow out and gives its result; raises what it raises."""
        outcomes: Sequence[Outcome] | None = None
        while True:
            try:
                step = flow.send(outcomes)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                outcomes = ()
            else:
                outcomes = self._send(step)

    def wait_ready(self, timeout: float) -> None:
        """Returns once connected.

        Raises:
          errors.ServingError: UNAVAILABLE, not within `timeout` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout)
        except grpc.FutureTimeoutError:
            raise _not_ready(self._target, timeout) from None

    def close(self) -> None:
        self._channel.close()

    def _send(self, step: Send) -> list[Outcome]:
        if len(step.calls) == 1:  # a future costs more
            (call,) = step.calls
            return [_outcome(lambda: self._method(call)(call.request, step.timeout))]
        futures = [self._method(c).future(c.request, timeout=step.timeout) for c in step.calls]
        return [_outcome(future.result) for future in futures]

    def _method(self, call: Call) -> grpc.UnaryUnaryMultiCallable:
        return _method(self._channel, self._methods, call)


class AsyncConnection:
    """Awaits; for one event loop."""

    def __init__(self, target: str, tls: Tls | None):
        self._target = target
        self._channel = _channel(grpc.aio, target, tls)
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable] = {}

    async def run(self, flow: Flow[T]) -> T:
        """As `Connection.run`."""
        outcomes: Sequence[Outcome] | None = None
        while True:
            try:
                step = flow.send(outcomes)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                outcomes = ()
            else:
                outcomes = await asyncio.gather(*(self._one(c, step.timeout) for c in step.calls))

    async def wait_ready(self, timeout: float) -> None:
        """As `Connection.wait_ready`."""
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout)
        except asyncio.TimeoutError:
            raise _not_ready(self._target, timeout) from None

    async def close(self) -> None:
        await self._channel.close()

    async def _one(self, call: Call, timeout: float) -> Outcome:
        try:
            return await _method(self._channel, self._methods, call)(call.request, timeout=timeout)
        except grpc.RpcError as error:
            return error


def _channel(library: Any, target: str, tls: Tls | None) -> Any:
    """Of `grpc` or `grpc.aio`, which make channels alike."""
    if not tls:
        return library.insecure_channel(target, options=_OPTIONS)
    options: tuple[tuple[str, Any], ...] = _OPTIONS
    if tls.server_name:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return library.secure_channel(target, tls.credentials(), options=options)


def _outcome(call: Any) -> Outcome:
    try:
        return call()
    except grpc.RpcError as error:
        return error


def _method(channel: Any, methods: dict[str, Any], call: Call) -> Any:
    if call.path not in methods:
        methods[call.path] = channel.unary_unary(
            call.path,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=call.response.FromString,
        )
    return methods[call.path]


def _not_ready(target: str, timeout: float) -> errors.ServingError:
    return errors.ServingError(
        grpc.StatusCode.UNAVAILABLE, f"no server came up at {target} within {timeout:g} s"
    )
