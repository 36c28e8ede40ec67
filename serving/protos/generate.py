"""Writes `api.pb`: `python serving/protos/generate.py`.

From the installed tensorflow-serving-api and the `.proto` files beside this one. Needs TensorFlow
and grpcio-tools; run it when a pin or a `.proto` file changes.
"""

import importlib
import pathlib
import tempfile

import grpc_tools
from google.protobuf import descriptor, descriptor_pb2
from grpc_tools import protoc

FOLDER = pathlib.Path(__file__).parent
MODULES = (
    "tensorflow_serving.apis.prediction_service_pb2",
    "tensorflow_serving.apis.model_service_pb2",
    "tensorflow_serving.apis.prediction_log_pb2",
    "tensorflow_serving.config.model_server_config_pb2",
    "tensorflow.core.example.example_pb2",
    "tensorflow.core.protobuf.config_pb2",
    "tensorflow.core.protobuf.meta_graph_pb2",
)


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """`MODULES`' files, ours, and all they import, dependencies first."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(file: descriptor.FileDescriptor) -> None:
        if file.name in files:
            return
        for dependency in file.dependencies:
            add(dependency)
        files[file.name] = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(files[file.name])

    for module in MODULES:
        add(importlib.import_module(module).DESCRIPTOR)
    for ours in _compiled():
        files.setdefault(ours.name, ours)
    return descriptor_pb2.FileDescriptorSet(file=files.values())


def _compiled() -> list[descriptor_pb2.FileDescriptorProto]:
    standard = pathlib.Path(grpc_tools.__file__).with_name("_proto")
    tensorflow = pathlib.Path(importlib.import_module("tensorflow").__file__ or "").parent
    with tempfile.NamedTemporaryFile() as output:
        code = protoc.main(
            [
                "protoc",
                f"-I{FOLDER}",
                f"-I{standard}",
                f"-I{tensorflow}/include",
                "--include_imports",
                f"--descriptor_set_out={output.name}",
                *sorted(map(str, FOLDER.glob("*.proto"))),
            ]
        )
        if code:
            raise SystemExit("protoc failed; its messages are above")
        content = pathlib.Path(output.name).read_bytes()
    return list(descriptor_pb2.FileDescriptorSet.FromString(content).file)


if __name__ == "__main__":
    content = descriptor_set().SerializeToString(deterministic=True)
    path = FOLDER / "api.pb"
    path.write_bytes(content)
    print(f"{path}: {len(content)} bytes")
