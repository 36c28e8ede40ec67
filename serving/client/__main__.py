"""Asks a model server about the users of a file and prints the answers as JSON lines."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping

import grpc
import numpy as np

from serving import errors
from serving.client import instances
from serving.client.client import Client
from serving.client.example import example
from serving.client.features import feature_specs, typed_example
from serving.client.flows import DEFAULT_SIGNATURE
from serving.client.signatures import Signature
from serving.client.tls import Tls


def _arguments(argv: list[str] | None, program: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument(
        "--target", default="localhost:8500", help="host:port of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--model", default="default", help="the model's name (default: %(default)s)"
    )
    parser.add_argument(
        "--signature", default=DEFAULT_SIGNATURE, help="e.g. embed (default: %(default)s)"
    )
    parser.add_argument("--version", type=int, help="the newest unless given")
    parser.add_argument(
        "--examples",
        required=True,
        metavar="FILE",
        help='one instance a line as JSON, {"feature": value or list}; TFRecords; - for stdin',
    )
    parser.add_argument("--limit", type=int, help="only the first instances; all unless given")
    parser.add_argument(
        "--timeout", type=float, default=10.0, help="seconds a request (default: %(default)g)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="first wait so long for the model to load; not at all unless given",
    )
    tls = parser.add_argument_group("TLS (plain text unless --tls or one of the files is given)")
    tls.add_argument("--tls", action="store_true", help="with the system's authorities")
    tls.add_argument("--root_certificates", metavar="PEM", help="who vouches for the server")
    tls.add_argument("--certificate", metavar="PEM", help="who this client is (mutual TLS)")
    tls.add_argument("--key", metavar="PEM", help="of --certificate")
    return parser.parse_args(argv)


def _tls(arguments: argparse.Namespace) -> Tls | None:
    files = (arguments.root_certificates, arguments.certificate, arguments.key)
    return Tls(*files) if arguments.tls or any(files) else None


def _writer(
    signatures: Mapping[str, Signature], model: str
) -> Callable[[Mapping[str, object]], bytes]:
    """Checks a user as `Client.score` does, unless the model doesn't say what features it takes."""
    try:
        return functools.partial(typed_example, feature_specs(signatures, model))
    except errors.ServingError:
        return example


def _plain(value: object) -> object:
    """JSON has neither bytes nor NaN."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _row(array: np.ndarray) -> object:
    """The single row of a batch of one; float32 in its own few digits."""
    row = array[0] if array.ndim else array
    if isinstance(row, bytes):
        return _plain(row)
    if row.dtype == np.float32:
        row = row.astype("U").astype(np.float64)
    return _plain(row.tolist())


def _hint(error: errors.ServingError, arguments: argparse.Namespace) -> str:
    """The flag that may help."""
    cause = error.__cause__ if isinstance(error.__cause__, errors.ServingError) else error
    if cause.code == grpc.StatusCode.NOT_FOUND:
        version = "" if arguments.version is None else f" --version={arguments.version}"
        return f"; has the server --model={arguments.model}{version}?"
    if cause.code == grpc.StatusCode.UNAVAILABLE and arguments.wait is None:
        return "; --wait=60 waits for a server that is starting"
    return ""


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    """Prints one JSON object of outputs per instance.

    Args:
      program: its name in the help; that of the script unless given.

    Returns:
      The exit code: 0, or 1 on error.
    """
    arguments = _arguments(argv, program)
    model, version = arguments.model, arguments.version
    try:
        with (
            instances.open_instances(arguments.examples) as file,
            Client(arguments.target, tls=_tls(arguments)) as asking,
        ):
            if arguments.wait is not None:
                asking.wait_available(model, version=version, timeout=arguments.wait)
            signatures = asking.metadata(model, version=version, timeout=arguments.timeout)
            read = instances.read_instances(file, _writer(signatures, model))
            for instance in itertools.islice(read, arguments.limit):
                # One user a request, as in serving; in a batch, users would pad one another.
                outputs = asking.predict(
                    model,
                    {"examples": [instance]},
                    signature=arguments.signature,
                    version=version,
                    timeout=arguments.timeout,
                )
                print(json.dumps({name: _row(array) for name, array in outputs.items()}))
    except errors.ServingError as error:
        print(f"error: {error}{_hint(error, arguments)}", file=sys.stderr)
        return 1
    except instances.InstancesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(program="python -m serving.client"))
