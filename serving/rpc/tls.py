"""TLS and mutual TLS of a server's ports, from one `--ssl_config_file`."""

from __future__ import annotations

import pathlib
import ssl
import tempfile
from typing import NamedTuple

import grpc
from google.protobuf import message

from serving import protos
from serving.rpc.config_file import ConfigError, read

_PEM = "-----BEGIN "


class Tls(NamedTuple):
    """What the ports need.

    Attributes:
      context: the REST port's.
      credentials: the gRPC port's.
    """

    context: ssl.SSLContext
    credentials: grpc.ServerCredentials


def load(path: str) -> Tls:
    """TLS as a text proto SSLConfig says: PEM texts of the server's key, its certificate and the
    clients' authority.

    Raises:
      ConfigError: it can't be read, something is missing, or is no PEM.
    """
    config = read(path, protos.SSLConfig)
    try:
        for field in ("server_key", "server_cert", "custom_ca"):
            _check_pem(field, getattr(config, field))
        return Tls(_context(config), _credentials(config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _check_pem(field: str, text: str) -> None:
    if not text and field != "custom_ca":
        raise ConfigError(f"{field} is missing")
    if text and _PEM not in text:
        raise ConfigError(
            f"{field}: PEM text expected, not a path; put the file's text here on one line, with"
            f' \\n for its line ends: "{_PEM}…"'
        )


def _context(config: message.Message) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        _load_pair(context, config)
    except ssl.SSLError as error:
        raise ConfigError(f"server_key and server_cert: {error.reason or error}") from None
    if config.custom_ca:
        try:
            context.load_verify_locations(cadata=config.custom_ca)
        except ssl.SSLError as error:
            raise ConfigError(f"custom_ca: {error.reason or error}") from None
    if config.client_verify:
        if not config.custom_ca:
            raise ConfigError("client_verify needs custom_ca, the authority of the clients")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _credentials(config: message.Message) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def _load_pair(context: ssl.SSLContext, config: message.Message) -> None:
    """Python's ssl reads these two from files only; a folder nobody else can enter holds them."""
    with tempfile.TemporaryDirectory() as folder:
        key, cert = pathlib.Path(folder, "key.pem"), pathlib.Path(folder, "cert.pem")
        key.write_text(config.server_key)
        cert.write_text(config.server_cert)
        context.load_cert_chain(cert, key)
