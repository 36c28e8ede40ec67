"""Puts the server together: the API, its two ports, health, metrics and the request log."""

from __future__ import annotations

import logging
import ssl
from typing import NamedTuple

import grpc

from serving import protos
from serving.server import config, flags, metrics, tls
from serving.server.api import MODEL_SERVICE, PREDICTION_SERVICE, Api
from serving.server.grpc_port import GrpcPort
from serving.server.health import Health
from serving.server.manager import Manager
from serving.server.request_log import RequestLog
from serving.server.rest import RestApp
from serving.server.rest_port import RestPort

_FLUSH_SECONDS = 2.0
"""For answers on their way out; who watches the health is cut off then."""


class Server(NamedTuple):
    """A server that answers."""

    api: Api
    health: Health
    grpc_port: GrpcPort
    rest_port: RestPort | None
    log: RequestLog | None

    def drain(self, seconds: float) -> None:
        """Refuses new requests, as UNAVAILABLE, and gives those under way `seconds`."""
        self.api.gate.close()
        self.health.drain()
        self.api.gate.wait(seconds)
        stopped = self.grpc_port.stop(_FLUSH_SECONDS)
        if self.rest_port:
            self.rest_port.stop(_FLUSH_SECONDS)
        stopped.wait()
        if self.log:
            self.log.close()


def start(manager: Manager) -> Server:
    """Binds the ports that the flags ask for and answers from then on.

    Raises:
      ConfigError: a file or a combination of flags that can't be used.
      OSError: a port can't be bound, or the request log opened.
    """
    context, credentials = _tls()
    metrics_path = _metrics_path()
    measured = metrics.Metrics(manager.models)
    log = None
    if flags.REQUEST_LOG_FILE.value:
        log = RequestLog(
            flags.REQUEST_LOG_FILE.value,
            flags.REQUEST_LOG_SAMPLING.value,
            measured.dropped_log_lines.inc,
        )
    api = Api(manager, measured, log, content=flags.CONTENT.value)
    health = Health(manager.models, (PREDICTION_SERVICE, MODEL_SERVICE))
    manager.on_change = health.update
    max_bytes = flags.MAX_REQUEST_MB.value << 20
    grpc_port = GrpcPort(
        api,
        health if flags.HEALTH_SERVICE.value else None,
        host=flags.HOST.value,
        port=flags.PORT.value,
        max_threads=flags.GRPC_THREADS.value,
        max_queued=flags.MAX_QUEUED.value,
        max_bytes=max_bytes,
        socket_path=flags.SOCKET_PATH.value,
        channel_arguments=flags.channel_arguments(),
        credentials=credentials,
    )
    rest_port = None
    if flags.REST_PORT.value:
        app = RestApp(
            api,
            health,
            measured,
            max_bytes=max_bytes,
            timeout=flags.REST_TIMEOUT_MS.value / 1000,
            metrics_path=metrics_path,
            cors=flags.REST_CORS.value,
        )
        rest_port = RestPort(
            app,
            host=flags.HOST.value,
            port=max(flags.REST_PORT.value, 0),
            max_threads=flags.REST_THREADS.value,
            max_queued=flags.MAX_QUEUED.value,
            tls=context,
        )
        scheme = "https" if context else "http"
        logging.info("REST API on %s://%s", scheme, rest_port.address)
    logging.info("listening on %s", grpc_port.address)
    return Server(api, health, grpc_port, rest_port, log)


def _tls() -> tuple[ssl.SSLContext | None, grpc.ServerCredentials | None]:
    path = flags.SSL_FILE.value
    if not path:
        return None, None
    read = config.read(path, protos.SSLConfig)
    try:
        return tls.server_context(read), tls.grpc_credentials(read)
    except config.ConfigError as error:
        raise config.ConfigError(f"{path}: {error}") from None


def _metrics_path() -> str:
    """Where Prometheus is answered; "" for nowhere."""
    if not flags.MONITORING_FILE.value:
        return ""
    prometheus = config.read(flags.MONITORING_FILE.value, protos.MonitoringConfig).prometheus_config
    if not prometheus.enable:
        return ""
    if not flags.REST_PORT.value:
        raise config.ConfigError("--monitoring_config_file needs --rest_api_port")
    return prometheus.path or metrics.DEFAULT_PATH
