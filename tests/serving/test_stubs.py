"""The real server, asked by unmodified tensorflow-serving-api stubs."""

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.client import example
from serving.local import local_server
from tests.serving.users import USER, sigmoid


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def their_request(inputs: dict, signature: str = "", name: str = "users"):
    import tensorflow as tf

    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def test_stubs_predict(stub):
    import tensorflow as tf

    response = stub.Predict(their_request({"examples": [example(USER)]}))
    assert response.model_spec.name == "users"
    assert response.model_spec.version.value == 7
    assert response.model_spec.signature_name == "serving_default"
    click = response.outputs["click"]
    np.testing.assert_allclose(tf.make_ndarray(click), sigmoid([[0.8, -0.7, 2.3]]), atol=1e-6)
    # TF Serving answers in typed fields unless told otherwise, and people read them.
    assert len(click.float_val) == 3 and not click.tensor_content


def test_stubs_metadata_and_status(stub, channel):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "users"
    response = stub.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert "examples" in signatures.signature_def["embed"].inputs
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "users"
    answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status)
    assert answer.model_version_status[0].state == 30
    assert answer.model_version_status[0].status.error_code == 0


def rpc_error(call) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()


ONES = {"x": np.float32([1]), "y": np.float32([1])}


def test_status_codes_and_messages_are_tf_servings(stub, channel):
    def answer(inputs, signature="add", name="users", change=None):
        request = their_request(inputs, signature, name)
        if change:
            change(request)
        return rpc_error(lambda: stub.Predict(request))

    def set_version(request):
        request.model_spec.version.value = 99

    def set_label(request):
        request.model_spec.version_label = "canary"

    invalid = "INVALID_ARGUMENT"
    assert answer(ONES, name="nobody") == (
        "NOT_FOUND",
        "Servable not found for request: Latest(nobody)",
    )
    assert answer(ONES, change=set_version) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(users, 99)",
    )
    assert answer(ONES, signature="sing") == (
        "FAILED_PRECONDITION",
        'Serving signature key "sing" not found.',
    )
    assert answer(ONES, name="") == (invalid, "ModelSpec has no name specified.")
    assert answer(ONES, change=set_label) == (
        invalid,
        "Unrecognized servable version label: canary",
    )
    assert answer({"x": ONES["x"]}) == (
        invalid,
        "input size does not match signature: 1!=2 len({x}) != len({x,y})."
        " Sent extra: {}. Missing but required: {y}.",
    )
    assert answer({"x": ONES["x"], "z": ONES["x"]}) == (
        invalid,
        "input tensor alias not found in signature: z. Inputs expected to be in the set {x,y}.",
    )
    assert answer(ONES, change=lambda r: r.output_filter.append("product")) == (
        invalid,
        "output tensor alias not found in signature: product"
        " Outputs expected to be in the set {difference,sum}.",
    )
    assert answer(ONES, change=lambda r: r.output_filter.extend(["sum", "sum"])) == (
        invalid,
        "duplicate output tensor alias: sum",
    )
    assert answer({"x": np.int32([1]), "y": ONES["y"]}) == (
        invalid,
        "input x: expected float32, got int32",
    )
    code, text = answer(ONES, change=lambda r: r.inputs["x"].tensor_shape.dim.add())
    assert code == invalid and text.startswith("tensor parsing error: x")
    empty = predict_pb2.PredictRequest()
    assert rpc_error(lambda: stub.Predict(empty)) == (invalid, "Missing ModelSpec")
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata.model_spec.name = "users"
    assert rpc_error(lambda: stub.GetModelMetadata(metadata)) == (
        invalid,
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    metadata.metadata_field.append("weights")
    assert rpc_error(lambda: stub.GetModelMetadata(metadata)) == (
        invalid,
        "Metadata field weights is not supported",
    )
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "nobody"
    ask = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus
    assert rpc_error(lambda: ask(status)) == (
        "NOT_FOUND",
        "Could not find any versions of model nobody",
    )
    garbled = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    assert rpc_error(lambda: garbled(b"\x0a\xff")) == (
        invalid,
        "the request is no valid PredictRequest",
    )
    unknown = channel.unary_unary("/tensorflow.serving.PredictionService/Sing")
    assert rpc_error(lambda: unknown(b""))[0] == "UNIMPLEMENTED"


def test_a_bad_example_is_the_callers_fault(stub):
    request = their_request({"examples": [b"\xff\xff"]}, "serving_default")
    code, text = rpc_error(lambda: stub.Predict(request))
    assert code == "INVALID_ARGUMENT" and "Could not parse example input" in text


def test_tensor_content_by_flag(push, tmp_path):
    push(1.0, tmp_path, 1)
    with local_server(tmp_path, flags=("--enable_serialization_as_tensor_content",)) as server:
        with grpc.insecure_channel(server.target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(their_request(ONES, "add", "default"))
        assert answer.outputs["sum"].tensor_content and not answer.outputs["sum"].float_val
