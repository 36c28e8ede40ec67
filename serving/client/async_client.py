"""`Client` for asyncio: the same methods, awaited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.client.connection import AsyncConnection
from serving.client.exchange import Retries
from serving.client.flows import DEFAULT_SIGNATURE, Flows, Model, VersionStatus
from serving.client.signatures import Signature
from serving.client.tls import Tls


class AsyncClient:
    """Asks one server from one event loop; arguments, answers and errors are `Client`'s."""

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        retries: Retries = Retries(),  # noqa: B008
        max_batch_rows: int | None = None,
    ):
        """As `Client`; to be made within the event loop."""
        self._connection = AsyncConnection(target, tls)
        self._flows = Flows(target, retries, max_batch_rows)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """As `Client.wait_ready`."""
        await self._connection.wait_ready(timeout)

    async def wait_available(
        self, model: str, *, version: int | None = None, timeout: float = 30.0
    ) -> None:
        """As `Client.wait_available`."""
        await self._connection.run(self._flows.wait_available(Model(model, version, timeout)))

    async def predict(
        self,
        model: str,
        inputs: Mapping[str, object],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> dict[str, np.ndarray]:
        """As `Client.predict`."""
        asked = Model(model, version, timeout)
        return await self._connection.run(self._flows.predict(asked, inputs, signature, outputs))

    async def score(
        self,
        model: str,
        features: Mapping[str, object],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> dict[str, np.ndarray]:
        """As `Client.score`."""
        (answer,) = await self.score_many(
            model, [features], signature=signature, version=version, outputs=outputs,
            timeout=timeout,
        )  # fmt: skip
        return answer

    async def score_many(
        self,
        model: str,
        users: Sequence[Mapping[str, object]],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> list[dict[str, np.ndarray]]:
        """As `Client.score_many`."""
        asked = Model(model, version, timeout)
        return await self._connection.run(self._flows.score(asked, users, signature, outputs))

    async def metadata(
        self, model: str, *, version: int | None = None, timeout: float = 10.0
    ) -> dict[str, Signature]:
        """As `Client.metadata`."""
        return await self._connection.run(self._flows.metadata(Model(model, version, timeout)))

    async def status(
        self, model: str, *, version: int | None = None, timeout: float = 10.0
    ) -> list[VersionStatus]:
        """As `Client.status`."""
        return await self._connection.run(self._flows.status(Model(model, version, timeout)))
