"""The command line: TF Serving's flags by its names (main.cc), and a few of ours."""

from __future__ import annotations

from collections.abc import Callable

from absl import flags

from serving import tensors
from serving.rpc.config_file import ConfigError

# What is served.
MODEL_NAME = flags.DEFINE_string("model_name", "default", "Name of the model in requests.")
MODEL_BASE_PATH = flags.DEFINE_string(
    "model_base_path", None, "Directory of version directories, e.g. DIR with DIR/1, DIR/2."
)
MODEL_CONFIG_FILE = flags.DEFINE_string(
    "model_config_file",
    None,
    "Text proto ModelServerConfig: many models, version policies, labels. Instead of"
    " --model_base_path and --model_name.",
)
MODEL_CONFIG_POLL_SECONDS = flags.DEFINE_float(
    "model_config_file_poll_wait_seconds",
    0.0,
    "Seconds between looks at --model_config_file, which is reloaded when it changed; 0: never.",
    lower_bound=0.0,
)
POLL_SECONDS = flags.DEFINE_float(
    "file_system_poll_wait_seconds",
    1.0,
    "Seconds between looks for new versions; 0 looks once at the start.",
    lower_bound=0.0,
)
MAX_LOAD_RETRIES = flags.DEFINE_integer(
    "max_num_load_retries",
    5,
    "Times a version that can't be loaded is tried again, unless its files change.",
    lower_bound=0,
)
LOAD_RETRY_MICROS = flags.DEFINE_integer(
    "load_retry_interval_micros", 60_000_000, "Microseconds between them.", lower_bound=0
)
LOAD_THREADS = flags.DEFINE_integer(
    "num_load_threads", 0, "Models loaded at once; 0 is one after another.", lower_bound=0
)
UNAVAILABLE_LABELS = flags.DEFINE_bool(
    "allow_version_labels_for_unavailable_models",
    False,
    "A reload may assign a label not yet in use to a version not yet available.",
)

# How it runs.
BATCHING = flags.DEFINE_bool(
    "enable_batching",
    True,
    "Run requests together that came while others ran. Waits for nothing, so it is on (TF"
    " Serving's default is off).",
)
BATCHING_FILE = flags.DEFINE_string(
    "batching_parameters_file", None, "Text proto BatchingParameters."
)
WARMUP = flags.DEFINE_bool(
    "enable_model_warmup",
    True,
    "Run each version before it answers: assets.extra/tf_serving_warmup_requests, or made-up"
    " requests where a model has none.",
)
METHOD_NAME_CHECK = flags.DEFINE_bool(
    "enable_signature_method_name_check",
    False,
    "A signature answers only the method it was exported for.",
)
GRAPPLER = flags.DEFINE_bool(
    "enable_grappler",
    False,
    "Let TensorFlow rewrite graphs when they are loaded, as TF Serving does. Loading takes several"
    " times as long; our models answer no faster for it, convolutional ones may.",
)
SESSION_PARALLELISM = flags.DEFINE_integer(
    "tensorflow_session_parallelism",
    0,
    "Sets both --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism.",
    lower_bound=0,
)
INTRA_OP = flags.DEFINE_integer(
    "tensorflow_intra_op_parallelism",
    1,
    "Threads within one operation; 0: one per core (TF Serving's default), which answers a lone"
    " large batch sooner and costs every other request more.",
    lower_bound=0,
)
INTER_OP = flags.DEFINE_integer(
    "tensorflow_inter_op_parallelism",
    0,
    "Threads across the operations of one request; 0: its own thread runs them (TF Serving's 0 is"
    " one per core).",
    lower_bound=0,
)
USER_CACHE_ENTRIES = flags.DEFINE_integer(
    "user_cache_entries",
    100_000,
    "User embeddings kept per version, for models that offer it; 0 keeps none.",
    lower_bound=0,
)
USER_CACHE_SECONDS = flags.DEFINE_float(
    "user_cache_seconds", 60.0, "How long one is kept.", lower_bound=0.0
)

# Who may ask, and how much.
HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Interface to listen on; 0.0.0.0 lets other machines in, unauthenticated unless"
    " --ssl_config_file asks for certificates.",
)
PORT = flags.DEFINE_integer(
    "port", 8500, "gRPC port; 0 lets the system choose one.", lower_bound=0, upper_bound=65535
)
SOCKET_PATH = flags.DEFINE_string(
    "grpc_socket_path", "", "UNIX socket to answer gRPC on too, e.g. /run/serving.sock."
)
GRPC_THREADS = flags.DEFINE_integer(
    "grpc_max_threads", 64, "gRPC requests answered at once.", lower_bound=1
)
CHANNEL_ARGUMENTS = flags.DEFINE_list(
    "grpc_channel_arguments", [], "Options of gRPC's core, e.g. grpc.max_connection_age_ms=2000."
)
REST_PORT = flags.DEFINE_integer(
    "rest_api_port",
    0,
    "REST port, also of metrics and health checks; 0: none; -1 lets the system choose one.",
    lower_bound=-1,
    upper_bound=65535,
)
REST_THREADS = flags.DEFINE_integer(
    "rest_api_num_threads", 64, "REST connections heard at once.", lower_bound=1
)
REST_TIMEOUT_MS = flags.DEFINE_integer(
    "rest_api_timeout_in_ms",
    30_000,
    "Milliseconds after which nobody waits for a REST answer; 0 is for ever.",
    lower_bound=0,
)
REST_CORS = flags.DEFINE_bool(
    "rest_api_enable_cors_support", False, "Let browsers ask from pages of any origin."
)
SSL_FILE = flags.DEFINE_string(
    "ssl_config_file", None, "Text proto SSLConfig: TLS, and mutual TLS, on both ports."
)
MAX_REQUEST_MB = flags.DEFINE_integer(
    "max_request_mb",
    tensors.MAX_BYTES >> 20,
    "Megabytes of the largest request or response.",
    lower_bound=1,
    upper_bound=tensors.MAX_BYTES >> 20,
)
MAX_QUEUED = flags.DEFINE_integer(
    "max_queued_requests",
    1000,
    "Requests that may wait for a thread; more are refused (RESOURCE_EXHAUSTED, 503).",
    lower_bound=0,
)

# What is answered, seen and written down.
CONTENT = flags.DEFINE_bool(
    "enable_serialization_as_tensor_content",
    False,
    "Answer with tensor_content (smaller, faster) instead of typed fields such as float_val.",
)
HEALTH_SERVICE = flags.DEFINE_bool(
    "enable_grpc_healthcheck_service", True, "Answer grpc.health.v1 (TF Serving's default: no)."
)
MONITORING_FILE = flags.DEFINE_string(
    "monitoring_config_file", None, "Text proto MonitoringConfig: Prometheus on the REST port."
)
REQUEST_LOG_FILE = flags.DEFINE_string(
    "request_log_file", None, "Append a sample of the requests to it, as JSON lines."
)
REQUEST_LOG_SAMPLING = flags.DEFINE_float(
    "request_log_sampling",
    0.01,
    "The share of requests in the request log.",
    lower_bound=0.0,
    upper_bound=1.0,
)
DRAIN_SECONDS = flags.DEFINE_float(
    "drain_seconds",
    25.0,
    "Seconds that SIGTERM gives requests under way; Kubernetes kills after 30 by default.",
    lower_bound=0.0,
)
VERSION = flags.DEFINE_bool("version", False, "Print the version and exit.")

_CPU_ONLY = "this server runs on CPUs only"
_NO_TFLITE = "this server runs SavedModels only"
_OWN_THREADS = "use --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism"
_ONE_WAY: dict[str, tuple[tuple[bool | int | float | str, ...], str]] = {
    "enable_profiler": ((False,), "there is no profiler service here"),
    "force_allow_any_version_labels_for_unavailable_models": (
        (False,),
        "use --allow_version_labels_for_unavailable_models",
    ),
    "mixed_precision": (("",), _CPU_ONLY),
    "num_request_iterations_for_warmup": ((0, 1), "each warm-up request runs once"),
    "num_unload_threads": ((0,), "there is no pool of threads for unloading"),
    "per_process_gpu_memory_fraction": ((0.0,), _CPU_ONLY),
    "platform_config_file": (("",), "tensorflow is the only platform"),
    "prefer_tflite_model": ((False,), _NO_TFLITE),
    "remove_unused_fields_from_bundle_metagraph": (
        (True,),
        "only the signatures are kept in any case",
    ),
    "saved_model_tags": (("", "serve"), "only the meta graph tagged `serve` is served"),
    "tensorflow_session_config_file": (("",), _OWN_THREADS),
    "thread_pool_factory_config_file": (("",), _OWN_THREADS),
    "use_alts_credentials": ((False,), "use --ssl_config_file"),
    "use_tflite_model": ((False,), _NO_TFLITE),
    "xla_cpu_compilation_enabled": (
        (False,),
        "what XLA compiles is decided when the model is exported",
    ),
}
"""TF Serving's flags that ask for what this server does only one way: the values that say so, and
why there are no others."""
_WITHOUT_EFFECT = {
    "flush_filesystem_caches": (True, "local directories have no caches to flush"),
    "num_tflite_interpreters_per_pool": (1, _NO_TFLITE),
    "num_tflite_pools": (1, _NO_TFLITE),
    "skip_initialize_tpu": (False, _CPU_ONLY),
}
"""TF Serving's flags whose every value means the same here, as it would there for such models."""
_DEFINE: dict[type, Callable[..., object]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}

for _name, (_values, _why) in _ONE_WAY.items():
    _DEFINE[type(_values[0])](_name, _values[0], f"No other value is taken: {_why}.")
for _name, (_value, _why) in _WITHOUT_EFFECT.items():
    _DEFINE[type(_value)](_name, _value, f"Changes nothing: {_why}.")


def refuse() -> None:
    """Checks that the command line asks for nothing this server can't do.

    Raises:
      ConfigError: it does.
    """
    for name, (values, why) in _ONE_WAY.items():
        if flags.FLAGS[name].value not in values:
            raise ConfigError(f"--{name} isn't supported: {why}")


def channel_arguments() -> list[tuple[str, int | str]]:
    """`--grpc_channel_arguments`, numbers as such.

    Raises:
      ConfigError: one isn't `name=value`.
    """
    arguments: list[tuple[str, int | str]] = []
    for argument in CHANNEL_ARGUMENTS.value:
        name, equals, value = argument.partition("=")
        if not name or not equals:
            raise ConfigError(f"--grpc_channel_arguments: {argument!r} isn't name=value")
        arguments.append((name, int(value) if value.lstrip("-").isdigit() else value))
    return arguments
