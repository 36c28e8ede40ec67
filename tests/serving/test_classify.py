"""Classify, Regress and MultiInference: numbers against Predict, and TF Serving's refusals."""

import contextlib

import grpc
import numpy as np
import pytest

from serving import protos
from serving.client import example
from serving.errors import ServingError
from serving.server import classify, example_input, models, multi_inference, predict, regress
from serving.server.servable import Options, Servable

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
USERS = [{"user_id": f"u{i}", "sequence_item": [100 * i, 7]} for i in range(3)]


class OneServable:
    """Stands in for `Models`: whatever the spec, the one servable."""

    def __init__(self, servable):
        self.servable = servable

    @contextlib.contextmanager
    def use(self, spec):
        yield models.Used(spec.name, 5, self.servable)


@pytest.fixture(scope="module")
def one(exports):
    servable = Servable(str(exports[2.0]), Options())
    yield OneServable(servable)
    servable.close()


def request(kind, signature, users=USERS, context=None):
    made = kind()
    made.model_spec.name = "m"
    made.model_spec.signature_name = signature
    fill(made.input, users, context)
    return made


def fill(sent, users, context=None):
    examples = sent.example_list.examples
    if context is not None:
        sent.example_list_with_context.context.MergeFromString(example(context))
        examples = sent.example_list_with_context.examples
    for user in users:
        examples.add().MergeFromString(example(user))


def predicted(one, signature, users=USERS):
    array = np.array([example(user) for user in users], object)
    return one.servable.run(signature, {"examples": array})


def test_classify_gives_each_examples_classes(one):
    response = classify.classify(one, request(protos.ClassificationRequest, "classify"))
    got = [[(c.label, c.score) for c in row.classes] for row in response.result.classifications]
    vip = predicted(one, "serving_default")["vip"]
    expected = [[("no", pytest.approx(1 - v)), ("yes", pytest.approx(v))] for v in vip]
    assert got == expected
    assert (response.model_spec.name, response.model_spec.version.value) == ("m", 5)
    assert response.model_spec.signature_name == "classify"


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        (classify.classify, protos.ClassificationRequest),
        (regress.regress, protos.RegressionRequest),
    ],
)
def test_examples_are_written_once_a_request(one, method, kind, monkeypatch):
    written = []
    write = example_input.serialized_examples
    monkeypatch.setattr(
        example_input, "serialized_examples", lambda sent: written.append(sent) or write(sent)
    )
    method(one, request(kind, method.__name__))
    assert len(written) == 1


def test_regress_gives_each_examples_value(one):
    response = regress.regress(one, request(protos.RegressionRequest, "regress"))
    got = [row.value for row in response.result.regressions]
    np.testing.assert_allclose(got, predicted(one, "embed")["embedding"][:, 0], rtol=1e-6)
    assert response.model_spec.version.value == 5


def test_the_context_counts_unless_the_example_says_otherwise(one):
    users = [{"user_id": "a"}, {"user_id": "b", "sequence_item": [9]}]
    sent = request(protos.RegressionRequest, "regress", users, context={"sequence_item": [1000]})
    got = [row.value for row in regress.regress(one, sent).result.regressions]
    np.testing.assert_allclose(got, [2.0, 0.018], rtol=1e-6)


def tasks(*pairs, users=USERS, name="m"):
    made = protos.MultiInferenceRequest()
    for signature, method in pairs:
        task = made.tasks.add(method_name=method)
        task.model_spec.name = name
        task.model_spec.signature_name = signature
    fill(made.input, users)
    return made


def test_multi_inference_answers_every_task(one):
    both = multi_inference.multi_inference(one, tasks(("classify", CLASSIFY), ("regress", REGRESS)))
    classified = classify.classify(one, request(protos.ClassificationRequest, "classify"))
    regressed = regress.regress(one, request(protos.RegressionRequest, "regress"))
    assert both.results[0].classification_result == classified.result
    assert both.results[1].regression_result == regressed.result
    assert [r.model_spec.signature_name for r in both.results] == ["classify", "regress"]
    assert {r.model_spec.version.value for r in both.results} == {5}


INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("method", "sent", "code", "text"),
    [
        ("classify", ("nosuch", USERS), INVALID, "No signature was found with the name: nosuch"),
        ("regress", ("nosuch", USERS), INVALID, "No signature was found with the name: nosuch"),
        ("classify", ("classify", []), INVALID, "Input is empty."),
        ("regress", ("regress", []), INVALID, "Input is empty."),
        ("classify", ("add", USERS), INVALID, "Expected one input Tensor."),
        ("classify", ("serving_default", USERS), INVALID, "Expected one or two output Tensors"),
        ("classify", ("embed", USERS), PRECONDITION, "No classification inputs found"),
        ("classify", ("regress", USERS), PRECONDITION, 'at least one of "classes" or "scores"'),
        ("regress", ("classify", USERS), INVALID, "Expected one output Tensor."),
        ("regress", ("spin", USERS), PRECONDITION, "No regression inputs found"),
    ],
)
def test_refusals(one, method, sent, code, text):
    api, kind = {
        "classify": (classify.classify, protos.ClassificationRequest),
        "regress": (regress.regress, protos.RegressionRequest),
    }[method]
    with pytest.raises(ServingError, match=text) as caught:
        api(one, request(kind, *sent))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        (tasks(("regress", REGRESS), name=""), INVALID, "ModelSpec with an empty model name"),
        (tasks(("regress", REGRESS), ("regress", REGRESS)), INVALID, "Duplicate evaluation"),
        (tasks(("nosuch", REGRESS)), INVALID, "Requested signature not found in model graph"),
        (tasks(("regress", REGRESS), users=[]), INVALID, "Input is empty."),
        (
            tasks(("add", "tensorflow/serving/predict")),
            grpc.StatusCode.UNIMPLEMENTED,
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ],
)
def test_multi_inference_refusals(one, sent, code, text):
    with pytest.raises(ServingError, match=text) as caught:
        multi_inference.multi_inference(one, sent)
    assert caught.value.code == code


def test_tasks_of_two_models_are_refused(one):
    sent = tasks(("regress", REGRESS), ("classify", CLASSIFY))
    sent.tasks[1].model_spec.name = "other"
    with pytest.raises(ServingError, match="must access the same model name"):
        multi_inference.multi_inference(one, sent)


def test_method_names_count_only_if_asked(exports):
    """TensorFlow 2 exports every signature with the method name predict."""
    strict = Servable(str(exports[2.0]), Options(signature_method_name_check=True))
    try:
        with pytest.raises(ServingError, match="method_name to be tensorflow/serving/classify"):
            classify.run(strict, request(protos.ClassificationRequest, "classify"))
        with pytest.raises(ServingError, match="method_name to be tensorflow/serving/regress"):
            regress.run(strict, request(protos.RegressionRequest, "regress"))
        sent = protos.PredictRequest()
        sent.model_spec.signature_name = "spin"
        sent.inputs["steps"].dtype = 9
        sent.inputs["steps"].int64_val.append(1)
        assert predict.run(strict, sent)["total"] == 2.0
    finally:
        strict.close()
