"""What a server is told to serve: a ModelServerConfig, checked."""

from __future__ import annotations

import os
import pathlib

from google.protobuf import message

from serving import protos
from serving.errors import invalid
from serving.server.model import GRAPH_FILE
from serving.server.models import Models

PLATFORM = "tensorflow"


def single_model(name: str, base_path: str) -> message.Message:
    """The ModelServerConfig of `--model_name` and `--model_base_path`."""
    config = protos.ModelServerConfig()
    path = base_path if "://" in base_path else os.path.abspath(base_path)
    config.model_config_list.config.add(name=name, base_path=path, model_platform=PLATFORM)
    return config


def check_models(config: message.Message, models: Models) -> None:
    """Refuses a ModelServerConfig that can't be served (server_core.cc, ValidateModelConfigList).

    Args:
      models: what is served now, whose platforms may not change.

    Raises:
      errors.ServingError: INVALID_ARGUMENT, naming the model and what is wrong with it.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest."
            " Only ModelConfigList is currently supported"
        )
    seen: set[str] = set()
    for entry in config.model_config_list.config:
        if entry.name in seen:
            raise invalid(f"Illegal to list model {entry.name} multiple times in config list")
        seen.add(entry.name)
        if not entry.name:
            raise invalid(f"the model with base path {entry.base_path} has no name")
        if entry.HasField("logging_config"):
            raise invalid(
                f"model {entry.name}: logging_config isn't supported; --request_log_file is"
            )
        _check_platform(entry, models)
        _check_base_path(entry)


def _check_platform(entry: message.Message, models: Models) -> None:
    platform = entry.model_platform
    if entry.model_type:
        if platform:
            raise invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated)"
                " and ModelServerConfig::model_platform."
            )
        platform = PLATFORM if entry.model_type == 1 else f"model_type {entry.model_type}"
    if not platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated)"
            f" nor ModelServerConfig::model_platform. (model {entry.name}: it needs"
            f' model_platform: "{PLATFORM}")'
        )
    if platform == PLATFORM:
        return
    if any(model.name == entry.name for model in models):
        raise invalid(
            f"Illegal to change a model's platform. For model {entry.name} platform was"
            f" {PLATFORM} and new platform requested is {platform}"
        )
    raise invalid(f"Model {entry.name} requests unsupported platform {platform}")


def _check_base_path(entry: message.Message) -> None:
    path = pathlib.Path(entry.base_path)
    where = f"model {entry.name}: base path {entry.base_path}"
    if "://" in entry.base_path:
        raise invalid(f"{where} must be a local directory")
    if not path.is_absolute():
        raise invalid(
            f"Expected model {entry.name} to have an absolute path or URI;"
            f" got base_path()={entry.base_path}"
        )
    if path.exists() and not path.is_dir():
        raise invalid(f"{where} is a file; give the directory that holds the versions")
    if (path / GRAPH_FILE).exists():
        raise invalid(
            f"{where} is itself a SavedModel; give the directory above it, and name this one by"
            " its version number, e.g. 1"
        )
