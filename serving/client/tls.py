"""Encrypted connections."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import grpc

from serving import errors


@dataclasses.dataclass(frozen=True)
class Tls:
    """
    Attributes:
      root_certificates: PEM file of the authorities that vouch for the server; the system's
        own unless given.
      certificate, key: PEM files with which this client shows who it is (mutual TLS).
      server_name: the name in the server's certificate, if it isn't the one in the target.
    """

    root_certificates: str | os.PathLike | None = None
    certificate: str | os.PathLike | None = None
    key: str | os.PathLike | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """
        Raises:
          errors.ServingError: INVALID_ARGUMENT, a file that can't be read, or one of certificate
            and key without the other.
        """
        if (self.certificate is None) != (self.key is None):
            raise errors.ServingError(
                grpc.StatusCode.INVALID_ARGUMENT, "TLS: a certificate and its key go together"
            )
        return grpc.ssl_channel_credentials(
            _content(self.root_certificates), _content(self.key), _content(self.certificate)
        )


def _content(path: str | os.PathLike | None) -> bytes | None:
    if path is None:
        return None
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise errors.ServingError(
            grpc.StatusCode.INVALID_ARGUMENT, f"TLS: {path}: {error.strerror}"
        ) from None
