"""`python -m serving.server --model_base_path=DIR`: a model server that speaks TF Serving's API.

Flags have TF Serving's names. The newest version directory under the base path is served; a newer
one is picked up while running, without a failed request. SIGTERM drains and stops it.
"""

import logging
import os
import pathlib
import signal
import socket
import sys

# Before TensorFlow's library is loaded: its start-up chatter says nothing a user can act on.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags  # noqa: E402

from serving import protos  # noqa: E402
from serving.server import model, models, servable, server  # noqa: E402

_PORT = flags.DEFINE_integer(
    "port", 8500, "gRPC port; 0 lets the system choose one.", lower_bound=0, upper_bound=65535
)
_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Interface to listen on; 0.0.0.0 lets other machines in, unauthenticated."
)
_MODEL_NAME = flags.DEFINE_string("model_name", "default", "Name of the model in requests.")
_MODEL_BASE_PATH = flags.DEFINE_string(
    "model_base_path", None, "Directory of version directories, e.g. DIR with DIR/1, DIR/2.",
    required=True,
)  # fmt: skip
_POLL_SECONDS = flags.DEFINE_float(
    "file_system_poll_wait_seconds",
    1.0,
    "Seconds between looks for new versions; 0 looks once at the start.",
    lower_bound=0.0,
)
_MAX_THREADS = flags.DEFINE_integer(
    "grpc_max_threads", 4 * (os.cpu_count() or 1), "Requests answered at once.", lower_bound=1
)
_INTRA_OP = flags.DEFINE_integer(
    "tensorflow_intra_op_parallelism", 0, "Threads within one operation; 0: one per core."
)
_INTER_OP = flags.DEFINE_integer(
    "tensorflow_inter_op_parallelism", 0, "Threads across operations; 0: one per core."
)
_CONTENT = flags.DEFINE_bool(
    "enable_serialization_as_tensor_content",
    False,
    "Answer with tensor_content (smaller, faster) instead of typed fields such as float_val.",
)

GRACE_SECONDS = 30.0
"""Kubernetes' default between SIGTERM and SIGKILL."""


def _base_path() -> str:
    path = pathlib.Path(_MODEL_BASE_PATH.value)
    if "://" in _MODEL_BASE_PATH.value:
        sys.exit(f"--model_base_path={path}: must be a local directory")
    if path.exists() and not path.is_dir():
        sys.exit(f"--model_base_path={path}: is a file; give the directory that holds the versions")
    if (path / model.GRAPH_FILE).exists():
        sys.exit(
            f"--model_base_path={path}: is itself a SavedModel; give the directory above it, and"
            " name this one by its version number, e.g. 1"
        )
    return str(path.absolute())


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )  # fmt: skip
    # Not a handler that wakes this thread: Python runs handlers between bytecodes, so one for a
    # signal that comes just before the thread blocks would run when the next signal comes. What
    # wakes it is written where the signal arrives, in whatever thread that is.
    stopping, arrived = socket.socketpair()
    arrived.setblocking(False)
    signal.set_wakeup_fd(arrived.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    config = protos.ConfigProto(
        intra_op_parallelism_threads=_INTRA_OP.value, inter_op_parallelism_threads=_INTER_OP.value
    )
    options = servable.Options(session_config=config.SerializeToString())
    served = model.Model(_MODEL_NAME.value, _base_path(), options)
    try:
        running = server.Server(
            models.Models([served]),
            host=_HOST.value,
            port=_PORT.value,
            max_threads=_MAX_THREADS.value,
            content=_CONTENT.value,
        )
    except OSError as error:
        sys.exit(f"--port: {error}")
    running.watch(_POLL_SECONDS.value)
    stopping.recv(1)
    logging.info("stopping")
    running.stop(GRACE_SECONDS)
    logging.shutdown()
    # A version may still be loading; the library's destructors would race with it.
    os._exit(0)


if __name__ == "__main__":
    app.run(main)
