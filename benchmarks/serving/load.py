"""Keeps a server busy with a number of clients, and says how long each request took."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator

import grpc

PREDICT = "/tensorflow.serving.PredictionService/Predict"
_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def keep_busy(
    target: str, requests: Iterable[bytes], clients: int = 1, seconds: float = math.inf
) -> list[float]:
    """Asks until there are no more requests or the time is up.

    Args:
      clients: each of them has one request under way at a time.

    Returns:
      The seconds that every request took.
    """
    return asyncio.run(_keep_busy(target, iter(requests), clients, seconds))


async def _keep_busy(
    target: str, requests: Iterator[bytes], clients: int, seconds: float
) -> list[float]:
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(target, options=_UNLIMITED) as channel:
        predict = channel.unary_unary(PREDICT)
        end = time.perf_counter() + seconds

        async def client() -> None:
            for request in requests:
                start = time.perf_counter()
                await predict(request, timeout=60, wait_for_ready=True)
                latencies.append(time.perf_counter() - start)
                if time.perf_counter() > end:
                    return

        await asyncio.gather(*(client() for _ in range(clients)))
    return latencies
