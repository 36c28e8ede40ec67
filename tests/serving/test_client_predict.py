"""The client and the real server, over real gRPC: answers, and what is refused before the wire."""

import socket

import grpc
import numpy as np
import pytest

from serving.client import Client, ServingError, example
from tests.serving.users import USER, sigmoid


def test_predict_by_serialized_examples(client):
    answer = client.predict("users", {"examples": [example(USER)]})
    np.testing.assert_allclose(answer["click"], sigmoid([[0.8, -0.7, 2.3]]), atol=1e-6)
    np.testing.assert_allclose(answer["vip"], sigmoid([0.3]), atol=1e-6)
    assert answer["user_id"].tolist() == [b"u1"]


def test_embed_and_version_and_outputs(client):
    answer = client.predict(
        "users", {"examples": [example(USER)]}, signature="embed", version=7, outputs=["embedding"]
    )
    assert list(answer) == ["embedding"]
    np.testing.assert_allclose(answer["embedding"], [[0.3, 0.002, -0.3, 0.6]], atol=1e-6)


def test_one_user_with_a_thousand_candidates(client):
    prices = np.linspace(-3, 3, 1000, dtype=np.float32)
    answer = client.predict("users", {"examples": [example({**USER, "candidate_price": prices})]})
    np.testing.assert_allclose(answer["click"], sigmoid([prices + 0.3]), atol=1e-6)


def test_no_candidates(client):
    user = {key: value for key, value in USER.items() if key != "candidate_price"}
    assert client.predict("users", {"examples": [example(user)]})["click"].shape == (1, 0)


def test_named_tensors_are_cast_where_their_kind_allows(client):
    assert client.predict("users", {"x": [1, 2], "y": [0.5, 1.0]}, signature="add")[
        "sum"
    ].tolist() == [1.5, 3.0]


def test_messages_over_grpcs_4_mb(client):
    x = np.ones(3 << 20, np.float32)
    answer = client.predict("users", {"x": x, "y": x}, signature="add")
    assert (answer["sum"] == 2).all() and answer["sum"].nbytes == x.nbytes


def test_status_and_metadata(client):
    assert [(s.version, s.state, s.error) for s in client.status("users")] == [(7, "AVAILABLE", "")]
    signatures = client.metadata("users")
    assert {"serving_default", "embed", "add", "spin"} <= set(signatures)
    assert signatures["embed"].inputs["examples"].dtype == "string"
    assert signatures["embed"].outputs["embedding"].shape == (None, 4)


# --- the client's own checks


@pytest.mark.parametrize(
    "inputs, signature, code, text",
    [
        ({"instances": [b""]}, "embed", "INVALID_ARGUMENT", "takes the inputs examples (string)"),
        ({"examples": [1, 2]}, "embed", "INVALID_ARGUMENT", "is string, got int64"),
        ({"examples": [[b""]]}, "embed", "INVALID_ARGUMENT", "has shape [any], got [1, 1]"),
        ({"x": ["a"], "y": [1]}, "add", "INVALID_ARGUMENT", "is float32, got text"),
        ({"x": [[1], [1, 2]], "y": [1]}, "add", "INVALID_ARGUMENT", "rows have different lengths"),
        ({"x": [1], "y": [1]}, "sing", "FAILED_PRECONDITION", "it has: add, classify, embed, pool"),
    ],
)  # fmt: skip
def test_client_refuses_before_the_wire(client, monkeypatch, inputs, signature, code, text):
    monkeypatch.setattr(client._flows, "_send", None)  # sending would fail
    with pytest.raises(ServingError) as caught:
        client.predict("users", inputs, signature=signature)
    assert caught.value.code.name == code
    assert text in caught.value.message


def test_client_names_a_dead_server():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
    with Client(target) as asking, pytest.raises(ServingError) as caught:
        asking.predict("users", {"examples": [b""]})
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert caught.value.message == (
        f"no model server answers at {target}: nothing listens there. Start one with: python -m"
        " tfx_pipeline serve --output=RUN, or python -m serving.server --model_base_path=DIR"
    )
