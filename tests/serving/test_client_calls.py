"""Retries, splitting, TLS: the waiting client and the awaiting one alike."""

import asyncio
import contextlib
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
import trustme

from serving import protos
from serving.client import (
    AsyncClient,
    Client,
    KnowledgeClient,
    Retries,
    ServingError,
    Tls,
    example,
    rows,
)
from serving.client.flows import Flows
from serving.local import local_server

FAST = Retries(attempts=4, first=0.001)


@pytest.fixture(params=["waiting", "awaiting"])
def ask(request):
    """Calls a method of a client: `ask(target, method, *arguments, options={}, **keywords)`."""

    def wait(target, method, *arguments, options=None, **keywords):
        with Client(target, **(options or {})) as client:
            return getattr(client, method)(*arguments, **keywords)

    async def awaited(target, method, *arguments, options=None, **keywords):
        async with AsyncClient(target, **(options or {})) as client:
            return await getattr(client, method)(*arguments, **keywords)

    if request.param == "waiting":
        return wait
    return lambda *arguments, **keywords: asyncio.run(awaited(*arguments, **keywords))


@contextlib.contextmanager
def failing_server(codes: list[grpc.StatusCode], credentials=None, state: str = "AVAILABLE"):
    """A gRPC server whose GetModelStatus and DeleteUser fail with each code in turn, then answer.

    Its model is in `state`. Yields its address and the calls it got.
    """
    left, calls = list(codes), []

    def handler(service: str, method: str, response) -> grpc.GenericRpcHandler:
        def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
            calls.append(data)
            if left:
                context.abort(left.pop(0), "no")
            return response.SerializeToString()

        methods = {method: grpc.unary_unary_rpc_method_handler(answer)}
        return grpc.method_handlers_generic_handler(service, methods)

    status = protos.GetModelStatusResponse()
    status.model_version_status.add(version=3, state=state)
    deleted = protos.DeleteUserResponse(deleted=True)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (
            handler("tensorflow.serving.ModelService", "GetModelStatus", status),
            handler("universal.knowledge.v1.KnowledgeCenter", "DeleteUser", deleted),
        )
    )
    port = (
        server.add_secure_port("localhost:0", credentials)
        if credentials
        else server.add_insecure_port("localhost:0")
    )
    server.start()
    try:
        yield f"localhost:{port}", calls
    finally:
        server.stop(None)


# --- retries


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_calls_the_server_was_away_or_too_busy_for_are_made_again(ask, code):
    with failing_server([grpc.StatusCode[code]] * 3) as (target, calls):
        (status,) = ask(target, "status", "m", options={"retries": FAST})
    assert status.version == 3
    assert len(calls) == 4


def test_the_last_attempts_error_is_told(ask):
    with failing_server([grpc.StatusCode.RESOURCE_EXHAUSTED] * 9) as (target, calls):
        with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED: no"):
            ask(target, "status", "m", options={"retries": FAST})
        assert len(calls) == 4


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_others_would_fail_again_and_are_not(ask, code):
    with failing_server([grpc.StatusCode[code]]) as (target, calls):
        with pytest.raises(ServingError) as error:
            ask(target, "status", "m", options={"retries": FAST})
        assert error.value.code.name == code
        assert len(calls) == 1


def test_a_message_too_large_is_not_sent_again(ask, monkeypatch):
    """gRPC says RESOURCE_EXHAUSTED of it too; its servers take 4 MB unless told otherwise."""
    pauses = []
    monkeypatch.setattr("random.uniform", lambda low, high: pauses.append(high) or 0.0)
    too_large = pytest.raises(ServingError, match="RESOURCE_EXHAUSTED: .*larger than max")
    with failing_server([]) as (target, _), too_large:
        ask(target, "status", "m" * (5 << 20))
    assert not pauses


def test_a_user_is_deleted_once():
    with (
        failing_server([grpc.StatusCode.UNAVAILABLE]) as (target, calls),
        KnowledgeClient(target, retries=FAST) as client,
    ):
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            client.delete_user("u")
        assert len(calls) == 1
        assert client.delete_user("u")


def test_no_pause_goes_past_the_deadline(ask, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    slow = Retries(attempts=4, first=100.0, longest=100.0)
    with failing_server([grpc.StatusCode.UNAVAILABLE]) as (target, calls):
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            ask(target, "status", "m", timeout=5.0, options={"retries": slow})
        assert len(calls) == 1


def test_pauses_double_up_to_the_longest_with_full_jitter(monkeypatch):
    ranges = []
    monkeypatch.setattr("random.uniform", lambda low, high: ranges.append((low, high)) or 0.0)
    for attempt in range(1, 6):
        Retries(first=0.1, longest=0.5).pause(attempt)
    assert ranges == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.5), (0, 0.5)]


# --- signatures learnt


def _write_doubling(path, dtype) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None], dtype, name="x")
    module.double = tf.function(lambda x: {"y": 2 * x}, input_signature=[spec])
    staging = path.with_name("staging")
    tf.saved_model.save(module, str(staging), signatures={"double": module.double})
    staging.rename(path)


def test_a_client_outlives_a_version_with_other_dtypes(tmp_path):
    _write_doubling(tmp_path / "1", tf.float32)
    flags = ("--file_system_poll_wait_seconds=0.1",)
    with local_server(tmp_path, "m", flags=flags) as running, Client(running.target) as client:
        first = client.predict("m", {"x": [1]}, signature="double")["y"]
        assert first.dtype == np.float32
        _write_doubling(tmp_path / "2", tf.int64)
        deadline = time.monotonic() + 60
        while client.status("m")[-1].state != "END" and time.monotonic() < deadline:
            time.sleep(0.05)
        second = client.predict("m", {"x": [1]}, signature="double")["y"]
        assert second.dtype == np.int64 and second.tolist() == [2]
        with pytest.raises(ServingError, match="takes the inputs x"):
            client.predict("m", {"z": [1]}, signature="double")


def test_what_doesnt_fit_the_newest_signatures_is_sent_once(server, monkeypatch):
    sent = []
    send = Flows._send
    monkeypatch.setattr(Flows, "_send", lambda *all: sent.append(all) or send(*all))
    with Client(server.target) as client:
        client.metadata("users")
        with pytest.raises(ServingError, match="INVALID_ARGUMENT: Could not parse example"):
            client.predict("users", {"examples": [b"\xff"]}, signature="embed")
    assert len(sent) == 1


# --- connecting


def test_waiting_for_a_server(ask):
    with failing_server([]) as (target, _):
        ask(target, "wait_ready", 20.0)
    with pytest.raises(ServingError, match="UNAVAILABLE: no server came up at 127.0.0.1:1 within"):
        ask("127.0.0.1:1", "wait_ready", 0.05)


def test_waiting_for_a_model(ask):
    codes = [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE]
    options = {"retries": Retries(attempts=1)}
    with failing_server(codes) as (target, calls):
        ask(target, "wait_available", "m", timeout=20.0, options=options)
        assert len(calls) == 3
    late = "DEADLINE_EXCEEDED: model 'm' isn't available after 0.3 s: version 3 is LOADING"
    with (
        failing_server([], state="LOADING") as (target, _),
        pytest.raises(ServingError, match=late),
    ):
        ask(target, "wait_available", "m", timeout=0.3)
    with (
        failing_server([grpc.StatusCode.INVALID_ARGUMENT]) as (target, calls),
        pytest.raises(ServingError, match="INVALID_ARGUMENT: no"),
    ):
        ask(target, "wait_available", "m", timeout=20.0)
    assert len(calls) == 1


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority):
    """A server that asks for a certificate of the authority; its address."""
    own = authority.issue_cert("localhost")
    credentials = grpc.ssl_server_credentials(
        [(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())],
        root_certificates=authority.cert_pem.bytes(),
        require_client_auth=True,
    )
    with failing_server([], credentials) as (target, _):
        yield target


def _files(folder, authority: trustme.CA, signer: trustme.CA) -> dict:
    client = signer.issue_cert("client@example.org")
    files = {
        "root_certificates": authority.cert_pem.bytes(),
        "certificate": client.cert_chain_pems[0].bytes(),
        "key": client.private_key_pem.bytes(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}


def test_mutual_tls(ask, secure, authority, tmp_path):
    files = _files(tmp_path, authority, authority)
    once = {"retries": Retries(attempts=1)}
    (status,) = ask(secure, "status", "m", options={**once, "tls": Tls(**files)})
    assert status.version == 3
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    refused = [
        None,
        Tls(),
        Tls(files["root_certificates"]),
        Tls(**_files(stranger, authority, trustme.CA())),
        Tls(**files, server_name="elsewhere"),
    ]
    for tls in refused:
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            ask(secure, "status", "m", options={**once, "tls": tls}, timeout=20)


def test_tls_files_are_checked_first(tmp_path):
    with pytest.raises(ServingError, match="none.pem: No such file"):
        Client("localhost:1", tls=Tls(tmp_path / "none.pem"))
    with pytest.raises(ServingError, match="go together"):
        Client("localhost:1", tls=Tls(certificate=tmp_path / "c.pem"))


# --- rows


def _users(count: int) -> list[bytes]:
    return [
        example({"user_id": f"u{i}", "sequence_item": [i], "candidate_price": [0.5] * (i % 4)})
        for i in range(count)
    ]


@pytest.mark.parametrize("most", [1, 3, 10, 99])
def test_a_split_request_is_answered_as_a_whole_one(ask, server, most):
    inputs = {"examples": _users(10)}
    whole = ask(server.target, "predict", "users", inputs)
    split = ask(server.target, "predict", "users", inputs, options={"max_batch_rows": most})
    assert split.keys() == whole.keys()
    for name, array in whole.items():
        assert split[name].dtype == array.dtype
        if array.dtype.kind == "f":
            np.testing.assert_allclose(split[name], array, atol=1e-6)
        else:
            assert split[name].tolist() == array.tolist()
    assert whole["click"].shape == (10, 3)


def test_more_pieces_than_calls_at_once(ask, server):
    x = np.arange(100, dtype=np.float32)
    inputs, options = {"x": x, "y": x}, {"max_batch_rows": 1}
    answer = ask(server.target, "predict", "users", inputs, signature="add", options=options)
    np.testing.assert_array_equal(answer["sum"], 2 * x)


def test_an_input_without_rows_is_not_split(ask, server):
    answer = ask(
        server.target, "predict", "users", {"steps": 3}, signature="spin",
        options={"max_batch_rows": 1},
    )  # fmt: skip
    assert answer["total"] == 3


def test_outputs_without_a_row_per_input_cant_be_joined():
    with pytest.raises(ServingError, match="FAILED_PRECONDITION: output 'loss' has shape"):
        rows.join([{"loss": np.float32(1)}, {"loss": np.float32(2)}], [1, 1])


def test_strings_and_widths_join_padded():
    pieces = [
        {"t": np.array([[b"a", b"b"]], object), "n": np.ones((1, 1, 2), np.int64)},
        {"t": np.array([[b"c"], [b"d"]], object), "n": np.ones((2, 2, 1), np.int64)},
    ]
    joined = rows.join(pieces, [1, 2])
    assert joined["t"].tolist() == [[b"a", b"b"], [b"c", b""], [b"d", b""]]
    assert joined["n"].tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[1, 0], [1, 0]]]


def test_an_empty_batch_is_sent_as_it_is(ask, server):
    empty = np.zeros(0, np.float32)
    options = {"max_batch_rows": 3}
    answer = ask(
        server.target, "predict", "users", {"x": empty, "y": empty}, signature="add",
        options=options,
    )  # fmt: skip
    assert answer["sum"].shape == (0,)
