"""The checked-in descriptor set is what the installed tensorflow-serving-api gives."""

import importlib

from google.protobuf import descriptor_pb2

from serving import protos
from serving.protos import generate


def test_regenerating_gives_the_same_messages():
    stored = descriptor_pb2.FileDescriptorSet.FromString(protos.DESCRIPTORS.read_bytes())
    fresh = generate.descriptor_set()
    assert {f.name: f for f in stored.file} == {f.name: f for f in fresh.file}


def test_is_small():
    assert protos.DESCRIPTORS.stat().st_size < 200_000


def test_private_classes_speak_tensorflows_wire_format():
    predict_pb2 = importlib.import_module("tensorflow_serving.apis.predict_pb2")
    theirs = predict_pb2.PredictRequest()
    theirs.model_spec.name = "m"
    theirs.model_spec.version.value = 3
    theirs.inputs["x"].float_val.append(0.5)
    ours = protos.PredictRequest.FromString(theirs.SerializeToString())
    assert ours.model_spec.version.value == 3
    assert list(ours.inputs["x"].float_val) == [0.5]
    assert predict_pb2.PredictRequest.FromString(ours.SerializeToString()) == theirs
    assert type(ours) is not type(theirs)
