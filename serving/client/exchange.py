"""A conversation with a server, written once for callers who wait and callers who await.

A flow is a generator. It yields what is to be done, `Send` or `Pause`, gets the outcomes sent
back, and returns its result; `connection.py` runs it with threads or with asyncio.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf import message

from serving import errors

T = TypeVar("T")

_TOO_LARGE = "larger than max"
"""In what gRPC says of a message over the limit of either end."""
_REFUSED = "Connection refused"
"""In what gRPC says where nothing listens."""

MAX_PARALLEL = 32
"""Calls of one flow that are under way at once."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One request; `path` is the gRPC method, `/package.Service/Method`."""

    path: str
    request: message.Message
    response: type[message.Message]


@dataclasses.dataclass(frozen=True)
class Send:
    """Make these calls at once; the outcomes are their answers or errors, in order."""

    calls: Sequence[Call]
    timeout: float


@dataclasses.dataclass(frozen=True)
class Pause:
    """Do nothing for a while; the outcomes are empty."""

    seconds: float


Outcome: TypeAlias = message.Message | grpc.RpcError
Flow = Generator[Send | Pause, Sequence[Outcome], T]


@dataclasses.dataclass(frozen=True)
class Retries:
    """Exponential backoff with full jitter: a pause before attempt n + 1 is uniform between 0
    and min(longest, first · 2^(n-1)) seconds (M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015). None goes past the caller's deadline.

    Calls are made again where the server was away (UNAVAILABLE) or its queue full
    (RESOURCE_EXHAUSTED). A connection that broke is UNAVAILABLE too, and the server may have
    answered before it did: only calls that may be made twice are for retrying.

    Attributes:
      attempts: calls made at most; 1 never retries.
    """

    attempts: int = 4
    first: float = 0.1
    longest: float = 2.0

    def pause(self, attempt: int) -> float:
        """Seconds to wait after attempt 1, 2, …."""
        return random.uniform(0, min(self.longest, self.first * 2 ** (attempt - 1)))


ONCE = Retries(attempts=1)
"""For calls that may not be made twice."""


def exchange(calls: Sequence[Call], deadline: float, retries: Retries) -> Flow[list]:
    """Makes calls in parallel and gives their answers, in order.

    Args:
      deadline: a `time.monotonic()` moment.

    Raises:
      grpc.RpcError: the first call that failed for good.
    """
    answers: list = []
    for start in range(0, len(calls), MAX_PARALLEL):
        answers += yield from _at_once(calls[start : start + MAX_PARALLEL], deadline, retries)
    return answers


def _at_once(calls: Sequence[Call], deadline: float, retries: Retries) -> Flow[list]:
    answers: dict[int, message.Message] = {}
    attempt = 0
    while True:
        attempt += 1
        waiting = [i for i in range(len(calls)) if i not in answers]
        left = max(0.0, deadline - time.monotonic())
        outcomes = yield Send([calls[i] for i in waiting], left)
        failures = [outcome for outcome in outcomes if isinstance(outcome, grpc.RpcError)]
        if not failures:
            answers.update(zip(waiting, outcomes, strict=True))
            return [answers[i] for i in range(len(calls))]
        for failure in failures:
            if not _may_pass(failure):
                raise failure
        pause = retries.pause(attempt)
        if attempt >= retries.attempts or time.monotonic() + pause >= deadline:
            raise failures[0]
        for i, outcome in zip(waiting, outcomes, strict=True):
            if not isinstance(outcome, grpc.RpcError):
                answers[i] = outcome
        yield Pause(pause)


def _may_pass(failure: grpc.RpcError) -> bool:
    """Whether the same call may succeed later; a message too large is so every time."""
    if failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return _TOO_LARGE not in (failure.details() or "")
    return failure.code() == grpc.StatusCode.UNAVAILABLE


def clear(
    error: grpc.RpcError, target: str, timeout: float, kind: str, start: str
) -> errors.ServingError:
    """What a failed call means to the caller.

    Args:
      timeout: seconds the caller gave.
      kind: of server, and
      start: a command that starts one.
    """
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and _REFUSED in details:
        details = f"no {kind} answers at {target}: nothing listens there. Start one with: {start}"
    elif code == grpc.StatusCode.UNAVAILABLE:
        details = (
            f"no {kind} answers at {target} ({details}). If none is running, start one with:"
            f" {start}; if it wants TLS, or a certificate, the client needs them too"
        )
    elif code == grpc.StatusCode.DEADLINE_EXCEEDED:
        details = f"{target} didn't answer within {timeout:g} s"
    return errors.ServingError(code, details)
