"""A model server over a configuration with several models, asked by unmodified stubs.

Ours, unless TENSORFLOW_MODEL_SERVER names the binary of another: the suite uses TF Serving's own
flags, files and API only.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import grpc
import portpicker
import pytest
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass
class Server:
    """A running server's stubs."""

    predictions: prediction_service_pb2_grpc.PredictionServiceStub
    models: model_service_pb2_grpc.ModelServiceStub
    rest_url: str

    def rest(self, path: str, body: object = None) -> tuple[int, object]:
        """HTTP status and the answer's JSON. A body is POSTed: an object as JSON, bytes as is."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.rest_url}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def states(self, model: str) -> dict[int, str]:
        """Version -> state; empty while the model isn't known."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        try:
            answer = self.models.GetModelStatus(request, timeout=10)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE):
                return {}
            raise
        names = get_model_status_pb2.ModelVersionStatus.State.Name
        return {s.version: names(s.state) for s in answer.model_version_status}

    def wait_available(self, model: str, *versions: int, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not all(self.states(model).get(v) == "AVAILABLE" for v in versions):
            assert time.monotonic() < deadline, f"{model}: {self.states(model)}, want {versions}"
            time.sleep(0.05)


def command() -> list[str]:
    binary = os.environ.get("TENSORFLOW_MODEL_SERVER")
    return shlex.split(binary) if binary else [sys.executable, "-m", "serving.server"]


@pytest.fixture(scope="session")
def start(tmp_path_factory) -> Iterator[Callable[[str], Server]]:
    """Starts a server over a `models.config` text; all are stopped at the end."""
    processes: list[subprocess.Popen] = []

    def start(config: str, *flags: str) -> Server:
        folder = tmp_path_factory.mktemp("server")
        (folder / "models.config").write_text(config)
        port, rest_port = portpicker.pick_unused_port(), portpicker.pick_unused_port()
        arguments = [f"--port={port}", f"--rest_api_port={rest_port}", *flags]
        arguments += [f"--model_config_file={folder / 'models.config'}"]
        arguments += ["--allow_version_labels_for_unavailable_models=true"]
        arguments += ["--file_system_poll_wait_seconds=1"]
        with open(folder / "log", "wb") as log:
            processes.append(subprocess.Popen(command() + arguments, cwd=ROOT, stderr=log))
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        return Server(
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
            f"http://127.0.0.1:{rest_port}",
        )

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(60)


@pytest.fixture(scope="session")
def exports(tmp_path_factory) -> dict[float, pathlib.Path]:
    """Factor -> a SavedModel directory."""
    from tests.conformance import saved_models  # imports TensorFlow

    folder = tmp_path_factory.mktemp("factors")
    paths = {factor: folder / f"{factor:g}" for factor in (0.5, 1.0, 3.0)}
    for factor, path in paths.items():
        saved_models.write(path, factor)
    return paths


@pytest.fixture(scope="session")
def base_path(exports, tmp_path_factory) -> Callable[[dict[int, float]], pathlib.Path]:
    """{version: factor} -> a new directory of version directories."""

    def make(versions: dict[int, float]) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("model")
        for version, factor in versions.items():
            shutil.copytree(exports[factor], folder / str(version))
        return folder

    return make


def entry(name: str, path: pathlib.Path, more: str = "") -> str:
    """A model's part of a `models.config`."""
    return f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {more} }}'


@pytest.fixture(scope="session")
def server(start, base_path) -> Server:
    """`line`: versions 1 (0.5 · x + 2, label `stable`) and 2 (x + 2, `canary`); `other`: 7."""
    versions = base_path({1: 0.5, 2: 1.0})
    policy = "model_version_policy { specific { versions: 1 versions: 2 } }"
    labels = 'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }'
    models = entry("line", versions, f"{policy} {labels}") + entry("other", base_path({7: 3.0}))
    running = start(f"model_config_list {{ {models} }}")
    running.wait_available("line", 1, 2)
    running.wait_available("other", 7)
    return running
