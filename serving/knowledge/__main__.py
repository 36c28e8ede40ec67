"""The knowledge centre from the command line.

    python -m serving.knowledge publish --store=DIR runs/simulator/embeddings/20260101 [FOLDER ...]
    python -m serving.knowledge serve --store=DIR --port=8600
    python -m serving.knowledge get --store=DIR --user=U [--item=I] [--category=C] [--version=V]
    python -m serving.knowledge delete --store=DIR --user=U
    python -m serving.knowledge versions --store=DIR

--store is a directory, or Redis: redis://host:port/db, rediss://…, unix:///path/of.sock.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import sys

import grpc

from serving import errors
from serving.knowledge.center import lookup
from serving.knowledge.location import is_missing, open_store
from serving.knowledge.mapped_store import MappedStore
from serving.knowledge.store import MAX_VERSIONS, Store


def _published(location: str) -> Store:
    """A store to ask. Raises `ServingError` where there is none: mistyped, it isn't just empty."""
    if is_missing(location):
        raise errors.ServingError(
            grpc.StatusCode.NOT_FOUND, f"--store={location}: no such directory; `publish` makes it"
        )
    return open_store(location)


def _publish(arguments: argparse.Namespace) -> int:
    from serving.knowledge import parquet  # the one command that needs pyarrow

    store = open_store(arguments.store, keep=arguments.keep, dtype=arguments.dtype)
    version = arguments.version or parquet.version_of(arguments.exports[0])
    chunks = itertools.chain.from_iterable(map(parquet.read, arguments.exports))
    store.publish(version, chunks)
    print(f"published version {version}; versions: {', '.join(map(str, store.versions()))}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from serving.knowledge.server import Server
    from serving.rpc import free_port, tls
    from serving.rpc.config_file import ConfigError
    from serving.rpc.stopping import stop_signals

    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    stopping = stop_signals()
    store = open_store(arguments.store)
    if is_missing(arguments.store):
        logging.warning("--store=%s: no such directory yet; `publish` makes it", arguments.store)
    try:
        free_port.check_free(arguments.host, arguments.port, "--port")
        encryption = tls.load(arguments.ssl_config_file) if arguments.ssl_config_file else None
        running = Server(
            store,
            host=arguments.host,
            port=arguments.port,
            max_threads=arguments.threads,
            max_queued=arguments.max_queued_requests,
            credentials=encryption.credentials if encryption else None,
        )
    except ConfigError as error:
        print(f"error: --ssl_config_file: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    running.watch(arguments.poll_seconds)
    stopping.recv(1)
    logging.info("stopping: requests under way have %g s", arguments.drain_seconds)
    running.drain(arguments.drain_seconds)
    logging.shutdown()
    os._exit(0)  # the port answers to the end


def _get(arguments: argparse.Namespace) -> int:
    if not (arguments.user or arguments.item or arguments.category):
        raise errors.invalid("nothing to look up: give --user, --item or --category")
    answer = lookup(
        _published(arguments.store),
        users=arguments.user,
        items=arguments.item,
        categories=arguments.category,
        version=arguments.version,
    )
    batch = range(len(next(iter(answer.found.values()), ())))
    for row in batch:
        line = {
            kind: vectors[row].tolist() if answer.found[kind][row] else None
            for kind, vectors in answer.vectors.items()
        }
        print(json.dumps({"version": answer.version, **line}))
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    deleted = _published(arguments.store).delete_user(arguments.user)
    print("erased from every version" if deleted else "nothing was stored of this user")
    return 0


def _versions(arguments: argparse.Namespace) -> int:
    store = _published(arguments.store)
    for version in store.versions():
        print(version)
    damaged = store.damaged() if isinstance(store, MappedStore) else {}
    for version, error in damaged.items():
        print(f"error: version {version}: {error}", file=sys.stderr)
    return 1 if damaged else 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.knowledge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", required=True, help="directory, redis:// or unix:// address")

    publish = commands.add_parser("publish", parents=[common], help="write a version from Parquet")
    publish.add_argument("exports", nargs="+", metavar="FOLDER", help="of *.parquet; or one file")
    publish.add_argument("--version", type=int, help="default: the export's model_version")
    publish.add_argument("--keep", type=int, default=MAX_VERSIONS, help="versions kept (1 to 5)")
    publish.add_argument("--dtype", default="float32", choices=["float32", "float16"])
    publish.set_defaults(run=_publish)

    serve = commands.add_parser("serve", parents=[common], help="answer over gRPC")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0: others too, unauthenticated")
    serve.add_argument("--port", type=int, default=8600, help="0 lets the system choose")
    serve.add_argument("--threads", type=int, default=4 * (os.cpu_count() or 1))
    serve.add_argument(
        "--max_queued_requests", type=int, default=1000, help="more are RESOURCE_EXHAUSTED"
    )
    serve.add_argument("--ssl_config_file", help="text proto SSLConfig, as the model server's")
    serve.add_argument(
        "--drain_seconds", type=float, default=25.0, help="for requests under way at SIGTERM"
    )
    serve.add_argument("--poll_seconds", type=float, default=1.0, help="between looks for versions")
    serve.set_defaults(run=_serve)

    get = commands.add_parser("get", parents=[common], help="print vectors as JSON lines")
    get.add_argument("--user", action="append", default=[], help="may be repeated, as may others")
    get.add_argument("--item", action="append", default=[])
    get.add_argument("--category", action="append", default=[])
    get.add_argument("--version", type=int, help="the latest unless given")
    get.set_defaults(run=_get)

    delete = commands.add_parser("delete", parents=[common], help="erase a user from all versions")
    delete.add_argument("--user", required=True)
    delete.set_defaults(run=_delete)

    versions = commands.add_parser("versions", parents=[common], help="list and check versions")
    versions.set_defaults(run=_versions)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 on error."""
    arguments = _arguments(argv)
    try:
        return arguments.run(arguments)
    except errors.ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
