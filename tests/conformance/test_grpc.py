"""PredictionService and ModelService as TF Serving documents and codes them."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

X = {"x": np.float32([1.0, 2.0])}
TWO = {"a": np.int64([[1, 2], [3, 5]]), "b": np.array([b"u\xff", b""], object)}


def of(request, name="line", signature="", version=None, label=None):
    """The request with a ModelSpec."""
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    return request


def predict_request(inputs=X, outputs=(), **spec):
    request = of(predict_pb2.PredictRequest(output_filter=outputs), **spec)
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def example(**features):
    made = tf.train.Example()
    for name, value in features.items():
        field = "float_list" if isinstance(value, float) else "int64_list"
        getattr(made.features.feature[name], field).value.append(value)
    return made


def with_examples(request, *examples, context=None):
    if context is None:
        request.input.example_list.examples.extend(examples)
    else:
        request.input.example_list_with_context.examples.extend(examples)
        request.input.example_list_with_context.context.CopyFrom(context)
    return request


def classify_request(*examples, context=None, **spec):
    spec.setdefault("signature", "classify")
    return with_examples(of(classification_pb2.ClassificationRequest(), **spec), *examples,
                         context=context)  # fmt: skip


def regress_request(*examples, context=None, **spec):
    spec.setdefault("signature", "regress")
    return with_examples(of(regression_pb2.RegressionRequest(), **spec), *examples,
                         context=context)  # fmt: skip


ONE, OTHER = example(x=1.0), example(x=2.0, n=5)


def y(response):
    return tf.make_ndarray(response.outputs["y"]).tolist()


# --- Predict


@pytest.mark.parametrize(
    "spec,expected,version",
    [
        ({}, [3.0, 4.0], 2),
        ({"version": 1}, [2.5, 3.0], 1),
        ({"version": 2}, [3.0, 4.0], 2),
        ({"label": "stable"}, [2.5, 3.0], 1),
        ({"label": "canary"}, [3.0, 4.0], 2),
        ({"name": "other"}, [5.0, 8.0], 7),
    ],
)
def test_predict_answers_by_the_version_asked_for(server, spec, expected, version):
    response = server.predictions.Predict(predict_request(**spec))
    assert y(response) == expected
    assert response.model_spec.version.value == version
    assert response.model_spec.name == spec.get("name", "line")
    assert response.model_spec.signature_name == "serving_default"


def test_predict_takes_and_gives_named_tensors_of_several_types(server):
    response = server.predictions.Predict(predict_request(TWO, signature="two"))
    outputs = {name: tf.make_ndarray(value).tolist() for name, value in response.outputs.items()}
    assert outputs == {"sum": [3, 8], "echo_bytes": [b"u\xff", b""], "label": [b"odd", b"even"]}
    assert response.model_spec.signature_name == "two"


@pytest.mark.parametrize("content", [True, False])
def test_predict_reads_tensor_content_and_typed_fields(server, content):
    request = predict_request({})
    tensor = request.inputs["x"]
    tensor.dtype = tf.float32.as_datatype_enum
    tensor.tensor_shape.dim.add().size = 2
    if content:
        tensor.tensor_content = np.float32([1, 2]).tobytes()
    else:
        tensor.float_val.extend([1, 2])
    assert y(server.predictions.Predict(request)) == [3.0, 4.0]


def test_a_short_list_of_values_repeats_its_last(server):
    request = predict_request({})
    tensor = request.inputs["x"]
    tensor.dtype = tf.float32.as_datatype_enum
    tensor.tensor_shape.dim.add().size = 3
    tensor.float_val.append(1)
    assert y(server.predictions.Predict(request)) == [3.0, 3.0, 3.0]


def test_no_rows_give_no_rows(server):
    assert y(server.predictions.Predict(predict_request({"x": np.float32([])}))) == []


def test_an_output_filter_leaves_the_others_out(server):
    request = predict_request(TWO, signature="two", outputs=["sum"])
    assert list(server.predictions.Predict(request).outputs) == ["sum"]


# --- Classify, Regress, MultiInference


def test_classify(server):
    response = server.predictions.Classify(classify_request(ONE, OTHER))
    got = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
    assert got == [[("y", 3.0), ("n", 0.0)], [("y", 4.0), ("n", 5.0)]]
    assert response.model_spec.version.value == 2


def test_classify_without_classes_has_scores_only(server):
    response = server.predictions.Classify(classify_request(ONE, signature="scores_only"))
    (row,) = response.result.classifications
    assert [(c.label, c.score) for c in row.classes] == [("", 3.0), ("", 0.0)]


def test_regress(server):
    response = server.predictions.Regress(regress_request(ONE, OTHER))
    assert [r.value for r in response.result.regressions] == [3.0, 9.0]


def test_a_context_is_part_of_every_example(server):
    context = example(n=10)
    response = server.predictions.Regress(regress_request(ONE, example(x=2.0), context=context))
    assert [r.value for r in response.result.regressions] == [13.0, 14.0]


def multi_request(*tasks, examples=(ONE, OTHER)):
    request = inference_pb2.MultiInferenceRequest()
    for name, signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = name, signature
    return with_examples(request, *examples)


def test_multi_inference_answers_every_task(server):
    response = server.predictions.MultiInference(
        multi_request(("line", "regress", "regress"), ("line", "classify", "classify"))
    )
    regress, classify = response.results
    assert [r.value for r in regress.regression_result.regressions] == [3.0, 9.0]
    assert classify.classification_result.classifications[1].classes[1].score == 5.0
    assert classify.model_spec.signature_name == "classify"
    assert classify.model_spec.version.value == 2


# --- what goes wrong


def without_spec(request):
    request.ClearField("model_spec")
    return request


def wrong_content():
    request = predict_request()
    request.inputs["x"].ClearField("float_val")
    request.inputs["x"].tensor_content = b"12345"
    return request


INVALID, PRECONDITION, MISSING = "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"
FAILURES = {
    "predict, no spec": ("Predict", without_spec(predict_request()), INVALID),
    "predict, no name": ("Predict", predict_request(name=""), INVALID),
    "predict, unknown model": ("Predict", predict_request(name="nobody"), MISSING),
    "predict, unknown version": ("Predict", predict_request(version=99), MISSING),
    "predict, unknown label": ("Predict", predict_request(label="nobody"), INVALID),
    "predict, unknown signature": ("Predict", predict_request(signature="nope"), PRECONDITION),
    "predict, no inputs": ("Predict", predict_request({}), INVALID),
    "predict, an input too many": ("Predict", predict_request(X | {"z": X["x"]}), INVALID),
    "predict, an unknown input": ("Predict", predict_request({"z": X["x"]}), INVALID),
    "predict, a wrong type": ("Predict", predict_request({"x": np.int64([1])}), INVALID),
    "predict, content of a wrong size": ("Predict", wrong_content(), INVALID),
    "predict, an unknown output": ("Predict", predict_request(outputs=["z"]), INVALID),
    "predict, an output twice": ("Predict", predict_request(outputs=["y", "y"]), INVALID),
    "predict, the model refuses": ("Predict", predict_request(signature="fails"), INVALID),
    "classify, no spec": ("Classify", without_spec(classify_request(ONE)), INVALID),
    "classify, no examples": ("Classify", classify_request(), INVALID),
    "classify, unknown model": ("Classify", classify_request(ONE, name="nobody"), MISSING),
    "classify, unknown signature": ("Classify", classify_request(ONE, signature="nope"), INVALID),
    "classify, no classifier": ("Classify", classify_request(ONE, signature="two"), INVALID),
    "classify, a feature missing": ("Classify", classify_request(example(n=1)), INVALID),
    "regress, no spec": ("Regress", without_spec(regress_request(ONE)), INVALID),
    "regress, no examples": ("Regress", regress_request(), INVALID),
    "regress, unknown version": ("Regress", regress_request(ONE, version=99), MISSING),
    "regress, unknown signature": ("Regress", regress_request(ONE, signature="nope"), INVALID),
    "regress, a classifier": ("Regress", regress_request(ONE, signature="classify"), INVALID),
    "multi, no tasks": ("MultiInference", multi_request(), INVALID),
    "multi, two models": (
        "MultiInference",
        multi_request(("line", "regress", "regress"), ("other", "classify", "classify")),
        INVALID,
    ),
    "multi, a signature twice": (
        "MultiInference",
        multi_request(("line", "regress", "regress"), ("line", "regress", "regress")),
        INVALID,
    ),
    "multi, an unknown method": (
        "MultiInference",
        multi_request(("line", "regress", "predict")),
        "UNIMPLEMENTED",
    ),
    "multi, no examples": (
        "MultiInference",
        multi_request(("line", "regress", "regress"), examples=()),
        INVALID,
    ),
    "multi, unknown model": ("MultiInference", multi_request(("no", "a", "regress")), MISSING),
}


@pytest.mark.parametrize("method,request_,code", FAILURES.values(), ids=FAILURES)
def test_failures_have_tf_servings_codes_and_a_message(server, method, request_, code):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(server.predictions, method)(request_, timeout=30)
    assert caught.value.code().name == code, caught.value.details()
    assert caught.value.details() and "Traceback" not in caught.value.details()


# --- metadata and status


def metadata_request(*fields, **spec):
    return of(get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields), **spec)


def test_metadata_has_the_signatures(server):
    response = server.predictions.GetModelMetadata(metadata_request("signature_def", version=1))
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["two"].inputs["a"].dtype == tf.int64.as_datatype_enum
    assert [d.size for d in signatures.signature_def["two"].inputs["a"].tensor_shape.dim] == [-1, 2]
    assert response.model_spec.version.value == 1


@pytest.mark.parametrize(
    "request_,code",
    [
        (metadata_request(), INVALID),
        (metadata_request("graph_def"), INVALID),
        (without_spec(metadata_request("signature_def")), INVALID),
        (metadata_request("signature_def", name="nobody"), MISSING),
        (metadata_request("signature_def", version=99), MISSING),
    ],
)
def test_metadata_failures(server, request_, code):
    with pytest.raises(grpc.RpcError) as caught:
        server.predictions.GetModelMetadata(request_)
    assert caught.value.code().name == code


def status_request(**spec):
    return of(get_model_status_pb2.GetModelStatusRequest(), **spec)


def test_status_of_all_versions_and_of_one(server):
    every = server.models.GetModelStatus(status_request()).model_version_status
    assert [(s.version, s.state, s.status.error_code) for s in every] == [(2, 30, 0), (1, 30, 0)]
    (one,) = server.models.GetModelStatus(status_request(version=1)).model_version_status
    assert (one.version, one.state) == (1, 30)


@pytest.mark.parametrize(
    "request_,code",
    [
        (without_spec(status_request()), INVALID),
        (status_request(name="nobody"), MISSING),
        (status_request(version=99), MISSING),
    ],
)
def test_status_failures(server, request_, code):
    with pytest.raises(grpc.RpcError) as caught:
        server.models.GetModelStatus(request_)
    assert caught.value.code().name == code
