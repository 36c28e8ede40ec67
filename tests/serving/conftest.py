"""Real SavedModels, written once; a real server over one of them."""

import pathlib
import shutil

import pytest

from serving.client import Client
from serving.local import LocalServer, local_server


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> dict[float, pathlib.Path]:
    """Scale -> a SavedModel directory (see `saved_models.py`)."""
    from tests.serving import saved_models  # imports TensorFlow

    folder = tmp_path_factory.mktemp("exports")
    paths = {scale: folder / f"{scale:g}" for scale in (1.0, 2.0)}
    for scale, path in paths.items():
        saved_models.write(path, scale)
    return paths


@pytest.fixture(scope="session")
def push(exports):
    """Puts a version into a base path as TFX's Pusher does: `saved_model.pb` last."""

    def push(scale: float, base_path: pathlib.Path, version: int) -> pathlib.Path:
        target = base_path / str(version)
        shutil.copytree(exports[scale], target, ignore=shutil.ignore_patterns("saved_model.pb"))
        shutil.copy(exports[scale] / "saved_model.pb", target / "saved_model.pb.partial")
        (target / "saved_model.pb.partial").rename(target / "saved_model.pb")
        return target

    return push


@pytest.fixture(scope="session")
def server(push, tmp_path_factory) -> LocalServer:
    """Serves scale 1 as version 7 of `users`, on both ports, with metrics."""
    base_path = tmp_path_factory.mktemp("users")
    push(1.0, base_path, 7)
    monitoring = tmp_path_factory.mktemp("config") / "monitoring.config"
    monitoring.write_text("prometheus_config { enable: true }")
    flags = ("--rest_api_port=-1", f"--monitoring_config_file={monitoring}")
    with local_server(base_path, "users", flags=flags) as running:
        yield running


@pytest.fixture(scope="session")
def client(server) -> Client:
    with Client(server.target) as asking:
        yield asking


@pytest.fixture(scope="session")
def channels(tmp_path_factory) -> LocalServer:
    """A server of `channel_model`, which tells what features a user has."""
    from tests.serving import channel_model  # imports TensorFlow

    base_path = tmp_path_factory.mktemp("channels")
    channel_model.write(base_path / "1")
    with local_server(base_path, "channels") as running:
        yield running
