"""`python -m serving.server --model_base_path=DIR`: a model server that speaks TF Serving's API.

Flags have TF Serving's names. The newest version directory under the base path is served; a newer
one is picked up while running, without a failed request. --model_config_file serves many models.
SIGTERM drains and stops it.
"""

import faulthandler
import importlib.metadata
import logging
import os
import sys

# Before TensorFlow's library is loaded: its start-up chatter says nothing a user can act on.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags as absl_flags  # noqa: E402
from google.protobuf import message  # noqa: E402

from serving import errors, protos  # noqa: E402
from serving.rpc import config_file  # noqa: E402
from serving.rpc.stopping import stop_signals  # noqa: E402
from serving.server import batching, config, flags, memory, servable, server  # noqa: E402
from serving.server.manager import Manager  # noqa: E402
from serving.server.model import Retries  # noqa: E402

_FAILED, _USAGE_ERROR = 1, 2


def main(argv: list[str]) -> int:
    """Serves until a signal comes, which ends the process with exit code 0.

    Returns:
      The exit code otherwise: 0 for --help and --version, 1 failed, 2 asked for wrongly.
    """
    faulthandler.enable()  # TensorFlow's library may die of a signal: then with a Python stack
    if {"-h", "--help"} & set(argv[1:]):
        print(f"{__doc__}{absl_flags.FLAGS.module_help(flags)}")
        return 0
    try:
        unexpected = absl_flags.FLAGS(argv)[1:]
    except absl_flags.Error as error:
        return _refuse(str(error), _USAGE_ERROR)
    if unexpected:
        return _refuse(f"only flags (--name=value), not {unexpected[0]!r}", _USAGE_ERROR)
    if flags.VERSION.value:
        print(f"serving.server on TensorFlow {importlib.metadata.version('tensorflow')}")
        return 0
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s",
        force=True,
    )  # fmt: skip
    memory.configure_heap()
    stopping = stop_signals()
    try:
        flags.refuse()
        manager = Manager(
            _options(),
            Retries(flags.MAX_LOAD_RETRIES.value, flags.LOAD_RETRY_MICROS.value / 1e6),
            load_threads=flags.LOAD_THREADS.value,
            allow_unavailable_labels=flags.UNAVAILABLE_LABELS.value,
        )
        models_config = _models_config()
        manager.start(models_config)
        running = server.start(manager)
    except config_file.ConfigError as error:
        return _refuse(str(error), _USAGE_ERROR)
    except OSError as error:
        return _refuse(str(error), _FAILED)
    except errors.ServingError as error:
        return _refuse(error.message, _FAILED)
    manager.watch(flags.POLL_SECONDS.value)
    if flags.MODEL_CONFIG_POLL_SECONDS.value:
        manager.watch_config_file(
            flags.MODEL_CONFIG_FILE.value, models_config, flags.MODEL_CONFIG_POLL_SECONDS.value
        )
    memory.watch()
    stopping.recv(1)
    logging.info("stopping: requests under way have %g s", flags.DRAIN_SECONDS.value)
    manager.stop()
    running.drain(flags.DRAIN_SECONDS.value)
    logging.shutdown()
    # Ports answer and versions may load to the end; the libraries' destructors would race with it.
    os._exit(0)


def _refuse(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return exit_code


def _models_config() -> message.Message:
    if flags.MODEL_CONFIG_FILE.value:
        if flags.MODEL_BASE_PATH.present or flags.MODEL_NAME.present:
            raise config_file.ConfigError(
                "--model_config_file says what is served: leave out --model_base_path and"
                " --model_name"
            )
        return config_file.read(flags.MODEL_CONFIG_FILE.value, protos.ModelServerConfig)
    if flags.MODEL_CONFIG_POLL_SECONDS.value:
        raise config_file.ConfigError(
            "--model_config_file_poll_wait_seconds needs --model_config_file"
        )
    if not flags.MODEL_BASE_PATH.value:
        raise config_file.ConfigError(
            "one of --model_base_path and --model_config_file is required"
        )
    return config.single_model(flags.MODEL_NAME.value, flags.MODEL_BASE_PATH.value)


def _options() -> servable.Options:
    session = flags.SESSION_PARALLELISM.value
    if session and (flags.INTRA_OP.present or flags.INTER_OP.present):
        raise config_file.ConfigError(
            "give either --tensorflow_session_parallelism or --tensorflow_intra_op_parallelism"
            " and --tensorflow_inter_op_parallelism"
        )
    session_config = protos.ConfigProto(
        intra_op_parallelism_threads=session or flags.INTRA_OP.value,
        inter_op_parallelism_threads=session or flags.INTER_OP.value,
    )
    graph = session_config.graph_options
    graph.rewrite_options.disable_meta_optimizer = not flags.GRAPPLER.value
    # Functions become part of the graph when a version is loaded, not when they run first.
    graph.optimizer_options.do_function_inlining = True
    return servable.Options(
        session_config=session_config.SerializeToString(),
        in_calling_thread=not session_config.inter_op_parallelism_threads,
        batching=_batching(),
        warmup=flags.WARMUP.value,
        signature_method_name_check=flags.METHOD_NAME_CHECK.value,
        user_cache_size=flags.USER_CACHE_ENTRIES.value,
        user_cache_seconds=flags.USER_CACHE_SECONDS.value,
    )


def _batching() -> batching.Parameters | None:
    path = flags.BATCHING_FILE.value
    if not flags.BATCHING.value:
        if path:
            raise config_file.ConfigError("--batching_parameters_file needs --enable_batching")
        return None
    if not path:
        return batching.Parameters()
    try:
        return batching.Parameters.from_proto(config_file.read(path, protos.BatchingParameters))
    except errors.ServingError as error:
        raise config_file.ConfigError(f"{path}: {error.message}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv))
