"""Writes `api.pb` from the installed tensorflow-serving-api: `python serving/protos/generate.py`.

Needs TensorFlow; run it when the pinned versions change.
"""

import importlib
import pathlib

from google.protobuf import descriptor, descriptor_pb2

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
    """`MODULES`' files and all they import, dependencies first."""
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
    return descriptor_pb2.FileDescriptorSet(file=files.values())


if __name__ == "__main__":
    content = descriptor_set().SerializeToString(deterministic=True)
    path = pathlib.Path(__file__).with_name("api.pb")
    path.write_bytes(content)
    print(f"{path}: {len(content)} bytes")
