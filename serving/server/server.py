"""Puts the server together: the API, its two ports, health, metrics and the request log."""

from __future__ import annotations

import logging
from typing import NamedTuple

from serving import protos
from serving.rpc import config_file, free_port, tls
from serving.rpc.port import GrpcPort
from serving.server import flags, metrics
from serving.server.api import MODEL_SERVICE, PREDICTION_SERVICE, Api
from serving.server.grpc_services import services
from serving.server.health import Health
from serving.server.manager import Manager
from serving.server.request_log import RequestLog
from serving.server.rest import RestApp
from serving.server.rest_port import RestPort


class Server(NamedTuple):
    """A server that answers until the process ends, or nobody holds its ports."""

    api: Api
    health: Health
    log: RequestLog | None
    grpc_port: GrpcPort
    rest_port: RestPort | None

    def drain(self, seconds: float) -> None:
        """Refuses new requests, as UNAVAILABLE, and gives those under way `seconds`."""
        self.health.drain()
        self.api.gate.drain(seconds)
        if self.log:
            self.log.close()


def start(manager: Manager) -> Server:
    """Binds the ports that the flags ask for and answers from then on.

    Raises:
      ConfigError: a file or a combination of flags that can't be used.
      OSError: a port can't be bound, or the request log opened.
    """
    free_port.check_free(flags.HOST.value, flags.PORT.value, "--port")
    if flags.REST_PORT.value > 0:
        free_port.check_free(flags.HOST.value, flags.REST_PORT.value, "--rest_api_port")
    encryption = tls.load(flags.SSL_FILE.value) if flags.SSL_FILE.value else None
    metrics_path = _metrics_path()
    measured = metrics.Metrics(manager.models)
    log = _request_log(measured)
    api = Api(manager, measured, log, content=flags.CONTENT.value)
    health = Health(manager.models, (PREDICTION_SERVICE, MODEL_SERVICE))
    manager.on_change = health.update
    grpc_port = _start_grpc(api, health, encryption)
    rest_port = None
    if flags.REST_PORT.value:
        app = RestApp(
            api,
            health,
            measured,
            max_bytes=_max_bytes(),
            timeout=flags.REST_TIMEOUT_MS.value / 1000,
            metrics_path=metrics_path,
            cors=flags.REST_CORS.value,
        )
        rest_port = _start_rest(app, encryption)
    # Last: whoever starts the server reads from it that all ports are there.
    logging.info("listening on %s", grpc_port.address)
    return Server(api, health, log, grpc_port, rest_port)


def _start_grpc(api: Api, health: Health, encryption: tls.Tls | None) -> GrpcPort:
    return GrpcPort(
        services(api),
        health.servicer if flags.HEALTH_SERVICE.value else None,
        host=flags.HOST.value,
        port=flags.PORT.value,
        max_threads=flags.GRPC_THREADS.value,
        max_queued=flags.MAX_QUEUED.value,
        max_bytes=_max_bytes(),
        socket_path=flags.SOCKET_PATH.value,
        channel_arguments=flags.channel_arguments(),
        credentials=encryption.credentials if encryption else None,
    )


def _start_rest(app: RestApp, encryption: tls.Tls | None) -> RestPort:
    port = RestPort(
        app,
        host=flags.HOST.value,
        port=max(flags.REST_PORT.value, 0),
        max_threads=flags.REST_THREADS.value,
        max_queued=flags.MAX_QUEUED.value,
        tls=encryption.context if encryption else None,
    )
    logging.info("REST API on %s://%s", "https" if encryption else "http", port.address)
    return port


def _max_bytes() -> int:
    return flags.MAX_REQUEST_MB.value << 20


def _request_log(measured: metrics.Metrics) -> RequestLog | None:
    if not flags.REQUEST_LOG_FILE.value:
        return None
    return RequestLog(
        flags.REQUEST_LOG_FILE.value,
        flags.REQUEST_LOG_SAMPLING.value,
        measured.dropped_log_lines.inc,
    )


def _metrics_path() -> str:
    """Where Prometheus is answered; "" for nowhere."""
    if not flags.MONITORING_FILE.value:
        return ""
    prometheus = config_file.read(
        flags.MONITORING_FILE.value, protos.MonitoringConfig
    ).prometheus_config
    if not prometheus.enable:
        return ""
    if not flags.REST_PORT.value:
        raise config_file.ConfigError("--monitoring_config_file needs --rest_api_port")
    return prometheus.path or metrics.DEFAULT_PATH
