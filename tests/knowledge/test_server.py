"""The service in a process of its own, over real gRPC."""

import contextlib
import dataclasses
import fcntl
import re
import signal
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
import trustme
from google.protobuf import text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import errors, protos
from serving.client import KnowledgeClient, Tls
from serving.knowledge import MappedStore
from serving.knowledge.redis_store import RedisStore
from serving.knowledge.snapshot import locked
from serving.knowledge.store import item_rows, user_category_rows, user_rows
from tests.repo.source_tree import ROOT
from tests.serving.process import wait_until

VECTORS = np.random.default_rng(3).standard_normal((9, 4)).astype(np.float32)
USERS = [f"u{i}" for i in range(9)]


def _publish(location: str, version: int) -> None:
    rows = [
        user_rows(USERS, VECTORS * version),
        item_rows(["i1", "i2"], VECTORS[:2]),
        user_category_rows(["u1"], ["c"], VECTORS[:1]),
    ]
    MappedStore(location).publish(version, rows)


@contextlib.contextmanager
def _serving(location: str, *flags: str):
    """The process and its address."""
    command = [sys.executable, "-m", "serving.knowledge", "serve", f"--store={location}"]
    process = subprocess.Popen(
        [*command, "--port=0", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        for line in process.stderr:
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                break
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def location(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("knowledge"))
    _publish(folder, 7)
    return folder


@pytest.fixture(scope="module")
def client(location):
    with _serving(location) as (_, target), KnowledgeClient(target) as asking:
        yield asking


def test_a_batch_of_quadruples(client):
    answer = client.lookup(
        users=["u1", "u8", "nobody"],
        items=["i2", "nothing", "i1"],
        categories=["c", "c", "c"],
        product=True,
    )
    assert answer.version == 7
    u, i = (
        np.float32([VECTORS[1], VECTORS[8], [0] * 4]),
        np.float32([VECTORS[1], [0] * 4, VECTORS[0]]),
    )
    np.testing.assert_array_equal(answer.vectors["user"], u * 7)
    np.testing.assert_array_equal(answer.vectors["item"], i)
    np.testing.assert_array_equal(answer.vectors["product"], u * 7 * i)
    np.testing.assert_array_equal(
        answer.vectors["user_category"], np.float32([VECTORS[0], [0] * 4, [0] * 4])
    )
    assert {name: flags.tolist() for name, flags in answer.found.items()} == {
        "user": [True, True, False],
        "item": [True, False, True],
        "user_category": [True, False, False],
        "product": [True, False, False],
    }
    assert client.lookup().vectors == {}


@pytest.mark.parametrize(
    "arguments, code, text",
    [
        ({"users": ["u1"], "version": 6}, "NOT_FOUND", "no version 6; versions: 7"),
        ({"users": ["u1"], "items": ["a", "b"]}, "INVALID_ARGUMENT", "as many users as items"),
        ({"users": ["\ud800"]}, "INVALID_ARGUMENT", "text with a UTF-8 form"),
        ({"users": [7]}, "INVALID_ARGUMENT", "text with a UTF-8 form"),
        ({"users": ["u"] * 65_537}, "INVALID_ARGUMENT", "at most 65536"),
        ({"users": ["u1"], "product": True}, "FAILED_PRECONDITION", "no items were asked for"),
    ],
)
def test_errors_have_a_code_and_one_message(client, arguments, code, text):
    with pytest.raises(errors.ServingError) as error:
        client.lookup(**arguments)
    assert error.value.code.name == code
    assert text in error.value.message


def test_rubbish_is_the_callers_fault(location):
    with _serving(location) as (_, target), grpc.insecure_channel(target) as channel:
        method = channel.unary_unary("/universal.knowledge.v1.KnowledgeCenter/Lookup")
        with pytest.raises(grpc.RpcError) as error:
            method(b"\xff\xff", timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        response = protos.LookupResponse.FromString(method(b"", timeout=10))
        assert response.version == 7


def test_versions_published_and_users_erased_meanwhile_are_seen(tmp_path):
    location = str(tmp_path)
    _publish(location, 1)
    with (
        _serving(location, "--poll_seconds=0.05") as (process, target),
        KnowledgeClient(target) as client,
    ):
        assert client.versions() == (1,)
        _publish(location, 2)
        deadline = time.monotonic() + 20
        while client.versions() != (1, 2):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.lookup(users=["u1"]).version == 2
        assert MappedStore(location).delete_user("u1")  # by another process
        for version in (1, 2):
            assert not client.lookup(users=["u1"], version=version).found["user"][0]
        assert client.delete_user("u2") is True
        assert client.delete_user("u2") is False
        assert not MappedStore(location).delete_user("u2")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        with pytest.raises(errors.ServingError, match="no knowledge centre answers"):
            client.versions()


def _health(channel: grpc.Channel) -> str:
    request = health_pb2.HealthCheckRequest(service="universal.knowledge.v1.KnowledgeCenter")
    status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def _code(call, *arguments) -> str:
    try:
        call(*arguments, timeout=10)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def _methods(channel: grpc.Channel) -> tuple:
    """ListVersions and DeleteUser, untyped and never tried again."""
    service = "/universal.knowledge.v1.KnowledgeCenter"
    return channel.unary_unary(f"{service}/ListVersions"), channel.unary_unary(
        f"{service}/DeleteUser"
    )


USER = protos.DeleteUserRequest(user="u1").SerializeToString()


def test_it_is_healthy_once_there_is_a_version(tmp_path):
    location = str(tmp_path)
    with (
        _serving(location, "--poll_seconds=0.05") as (_, target),
        grpc.insecure_channel(target) as channel,
    ):
        assert _health(channel) == "NOT_SERVING"
        _publish(location, 1)
        wait_until(lambda: _health(channel) == "SERVING")


def test_over_redis(redis_url):
    address = f"{redis_url}?db=1"
    store = RedisStore(address)
    store.publish(1, [user_rows(USERS, VECTORS)])
    with _serving(address) as (_, target), KnowledgeClient(target) as client:
        np.testing.assert_array_equal(client.lookup(users=USERS).vectors["user"], VECTORS)
        assert client.delete_user("u3") and not store.delete_user("u3")


def test_without_redis_it_answers_that_it_is_not_ready(tmp_path):
    address = f"unix://{tmp_path}/none.sock"
    with _serving(address) as (_, target), grpc.insecure_channel(target) as channel:
        assert _health(channel) == "NOT_SERVING"
        assert _code(_methods(channel)[0], b"") == "UNAVAILABLE"


def test_more_requests_than_may_wait_are_refused(tmp_path):
    _publish(str(tmp_path), 1)
    flags = ("--threads=1", "--max_queued_requests=0")
    with _serving(str(tmp_path), *flags) as (_, target), grpc.insecure_channel(target) as channel:
        list_versions, delete_user = _methods(channel)
        leftover = tmp_path / ".staging-9"
        leftover.mkdir()
        with locked(tmp_path / "1", fcntl.LOCK_EX):
            waiting = delete_user.future(USER, timeout=60)
            wait_until(lambda: not leftover.exists())  # what it does first; now for the lock
            assert _code(list_versions, b"") == "RESOURCE_EXHAUSTED"
        assert protos.DeleteUserResponse.FromString(waiting.result()).deleted
        wait_until(lambda: _code(list_versions, b"") == "OK")


def test_stopping_finishes_what_is_under_way_and_sends_others_elsewhere(tmp_path):
    _publish(str(tmp_path), 1)
    with _serving(str(tmp_path)) as (process, target), grpc.insecure_channel(target) as channel:
        list_versions, delete_user = _methods(channel)
        leftover = tmp_path / ".staging-9"
        leftover.mkdir()
        with locked(tmp_path / "1", fcntl.LOCK_EX):
            waiting = delete_user.future(USER, timeout=60)
            wait_until(lambda: not leftover.exists())  # what it does first
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: _health(channel) == "NOT_SERVING")
            wait_until(lambda: _code(list_versions, b"") != "OK")
            assert _code(list_versions, b"") == "UNAVAILABLE"
        assert protos.DeleteUserResponse.FromString(waiting.result()).deleted
        assert process.wait(60) == 0


def test_clients_show_who_they_are(location, tmp_path):
    authority = trustme.CA()
    own, known = authority.issue_cert("127.0.0.1"), authority.issue_cert("client")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    known.private_key_pem.write_to_path(tmp_path / "key")
    known.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    config = protos.SSLConfig(
        server_key=own.private_key_pem.bytes().decode(),
        server_cert=own.cert_chain_pems[0].bytes().decode(),
        custom_ca=authority.cert_pem.bytes().decode(),
        client_verify=True,
    )
    (tmp_path / "ssl.config").write_text(text_format.MessageToString(config))
    stranger = Tls(root_certificates=tmp_path / "ca")
    member = dataclasses.replace(stranger, certificate=tmp_path / "cert", key=tmp_path / "key")
    with _serving(location, f"--ssl_config_file={tmp_path}/ssl.config") as (_, target):
        with KnowledgeClient(target, tls=member) as client:
            assert client.versions() == (7,)
        for tls in (stranger, None):
            with KnowledgeClient(target, tls=tls) as client, pytest.raises(errors.ServingError):
                client.versions(timeout=2)


def test_an_ssl_config_that_is_none_is_one_clear_error(location, tmp_path):
    command = [sys.executable, "-m", "serving.knowledge", "serve", f"--store={location}"]
    (tmp_path / "ssl.config").write_text('server_key: "rubbish"')
    failed = subprocess.run(
        [*command, f"--ssl_config_file={tmp_path}/ssl.config"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-1]
    assert last.startswith(f"error: --ssl_config_file: {tmp_path}/ssl.config: server_key: PEM")


def test_a_taken_port_is_one_clear_error(location):
    with _serving(location) as (_, target):
        port = target.split(":")[1]
        command = [sys.executable, "-m", "serving.knowledge", "serve", f"--store={location}"]
        failed = subprocess.run(
            [*command, f"--port={port}"], cwd=ROOT, capture_output=True, text=True
        )
    assert failed.returncode == 1
    assert failed.stderr == f"error: --port={port}: 127.0.0.1:{port} is taken; give another\n"


def test_a_port_that_is_none_is_refused(location):
    """gRPC would listen on 70000 - 65536."""
    command = [sys.executable, "-m", "serving.knowledge", "serve", f"--store={location}"]
    failed = subprocess.run([*command, "--port=70000"], cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr == "error: --port=70000: ports are 0 to 65535\n"
