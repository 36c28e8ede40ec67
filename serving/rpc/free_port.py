"""Whether a port can be listened on, asked before gRPC is: its core would log a raw line of its own
over our error, and takes a port beyond 65535 for another one.
"""

from __future__ import annotations

import errno
import socket


def check_free(host: str, port: int, flag: str) -> None:
    """Raises OSError, with the flag that gives the port, if nobody could listen on it now.

    A name that isn't known as IPv4 is left to whoever listens: what it stands for is their affair.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: connections that ended a moment ago don't hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
    except socket.gaierror:
        return
    except OverflowError:
        raise OSError(f"{flag}={port}: ports are 0 to 65535") from None
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:  # no IPv6 here: gRPC's [::] is then 0.0.0.0
            return
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"{flag}={port}: {host}:{port} is taken; give another") from None
        reason = error.strerror
        raise OSError(f"{flag}={port}: can't listen on {host}:{port}: {reason}") from None
