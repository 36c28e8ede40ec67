"""A client of the knowledge centre (`python -m serving.knowledge serve`)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from google.protobuf import message

from serving import errors, protos
from serving.client.connection import Connection
from serving.client.exchange import ONCE, Call, Flow, Retries, clear, exchange
from serving.client.tls import Tls

_SERVICE = "/universal.knowledge.v1.KnowledgeCenter"
_SERVER = ("knowledge centre", "python -m serving.knowledge serve --store=DIR")


@dataclasses.dataclass(frozen=True)
class KnowledgeAnswer:
    """
    Attributes:
      version: the version all rows are of.
      vectors: `user`, `item`, `user_category`, `product`, those asked for -> float32 [B, D],
        zero where not found.
      found: the same names -> bool [B].
    """

    version: int
    vectors: Mapping[str, np.ndarray]
    found: Mapping[str, np.ndarray]


class KnowledgeClient:
    """Asks one knowledge centre. One connection, reused; thread-safe.

    Every method raises `errors.ServingError`; `timeout` is in seconds, with retries.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        retries: Retries = Retries(),  # noqa: B008
    ):
        """As `Client`."""
        self._target = target
        self._retries = retries
        self._connection = Connection(target, tls)

    def __enter__(self) -> KnowledgeClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Waits for a server to come up at the target; UNAVAILABLE if none does in time."""
        self._connection.wait_ready(timeout)

    def lookup(
        self,
        *,
        users: Sequence[str] = (),
        items: Sequence[str] = (),
        categories: Sequence[str] = (),
        version: int | None = None,
        product: bool = False,
        timeout: float = 10.0,
    ) -> KnowledgeAnswer:
        """The vectors of B quadruples (user, item, category, version), all of one version.

        Args:
          users, items, categories: B each, or none: then that kind isn't looked up.
          version: the latest if None; the answer names it.
          product: K_u ⊙ K_i too.

        Raises:
          errors.ServingError: NOT_FOUND, no such version (the message lists those there are);
            INVALID_ARGUMENT; FAILED_PRECONDITION, no product of these.
        """
        request = protos.LookupRequest(product=product)
        try:
            request.users.extend(users)
            request.items.extend(items)
            request.categories.extend(categories)
        except (TypeError, ValueError) as error:
            raise errors.ServingError(
                grpc.StatusCode.INVALID_ARGUMENT, f"an id is text with a UTF-8 form: {error}"
            ) from None
        if version is not None:
            request.version.value = version
        response = self._ask("Lookup", request, protos.LookupResponse, timeout)
        vectors, found = {}, {}
        for field, each in response.ListFields():
            if field.message_type is not None:
                found[field.name] = _bits(each.found, _rows(request))
                flat = np.frombuffer(each.values, "<f4")
                vectors[field.name] = flat.reshape(_rows(request), each.dim)
        return KnowledgeAnswer(response.version, vectors, found)

    def versions(self, *, timeout: float = 10.0) -> tuple[int, ...]:
        """The versions that can be asked for, oldest first."""
        request = protos.ListVersionsRequest()
        return tuple(
            self._ask("ListVersions", request, protos.ListVersionsResponse, timeout).versions
        )

    def delete_user(self, user: str, *, timeout: float = 60.0) -> bool:
        """Erases a user from every version. Returns whether anything was stored.

        Asked once, whatever `retries`: a second answer would tell what the first one left. After
        an error, ask again until there is none.
        """
        request = protos.DeleteUserRequest(user=user)
        response = protos.DeleteUserResponse
        return self._ask("DeleteUser", request, response, timeout, ONCE).deleted

    def _ask(
        self,
        name: str,
        request: message.Message,
        response: type[message.Message],
        timeout: float,
        retries: Retries | None = None,
    ) -> message.Message:
        call = Call(f"{_SERVICE}/{name}", request, response)
        return self._connection.run(self._flow(call, timeout, retries or self._retries))

    def _flow(self, call: Call, timeout: float, retries: Retries) -> Flow[message.Message]:
        try:
            (answer,) = yield from exchange([call], time.monotonic() + timeout, retries)
            return answer
        except grpc.RpcError as error:
            raise clear(error, self._target, timeout, *_SERVER) from None


def _rows(request: message.Message) -> int:
    return max(len(request.users), len(request.items), len(request.categories))


def _bits(packed: bytes, count: int) -> np.ndarray:
    bits = np.frombuffer(packed, np.uint8)
    return np.unpackbits(bits, count=count, bitorder="little").astype(bool)
