"""Whether requests can be answered: `grpc.health.v1`, and `/readyz` of the REST port."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from grpc_health.v1 import health, health_pb2

from serving.server.models import Models

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """SERVING while every configured model has a version available. Thread-safe.

    Attributes:
      servicer: the gRPC service; it answers for "" (the server) and each service's name.
    """

    def __init__(self, models: Models, services: Iterable[str]):
        self.servicer = health.HealthServicer()
        self._models = models
        self._services = ("", *services)
        self._draining = False
        self._updating = threading.Lock()
        self._status: int | None = None
        self._announced: set[str] = set()
        self.update()

    @property
    def ready(self) -> bool:
        return self._models.ready and not self._draining

    def update(self) -> None:
        """To be called whenever what is available may have changed."""
        with self._updating:
            status = _SERVING if self.ready else _NOT_SERVING
            if status != self._status:  # Who watches is told of changes only.
                self._status = status
                for service in self._services:
                    self.servicer.set(service, status)
            for model in self._models:
                if model.name not in self._announced and model.is_available():
                    self._announced.add(model.name)
                    logging.info("ready: %s", model.name)

    def drain(self) -> None:
        """NOT_SERVING from now on."""
        self._draining = True
        self.servicer.enter_graceful_shutdown()
