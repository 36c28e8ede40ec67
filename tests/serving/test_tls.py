"""TLS and mutual TLS: who gets in, on both ports."""

import datetime
import socket
import ssl

import grpc
import pytest
import trustme
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serving.local import local_server
from tests.serving.http import ask


def text_proto(**fields: str | bool) -> str:
    def value(field):
        return str(field).lower() if isinstance(field, bool) else repr(field)

    return "".join(f"{name}: {value(field)}\n" for name, field in fields.items())


def pem(blobs) -> str:
    return "".join(blob.bytes().decode() for blob in blobs)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(push, authority, tmp_path_factory):
    """Answers only clients with a certificate of `authority`."""
    folder = tmp_path_factory.mktemp("tls")
    push(1.0, folder / "m", 1)
    own = authority.issue_cert("localhost", "127.0.0.1")
    (folder / "ssl.config").write_text(
        text_proto(
            server_key=own.private_key_pem.bytes().decode(),
            server_cert=pem(own.cert_chain_pems),
            custom_ca=authority.cert_pem.bytes().decode(),
            client_verify=True,
        )
    )
    flags = (f"--ssl_config_file={folder}/ssl.config", "--rest_api_port=-1")
    with local_server(folder / "m", "m", flags=flags) as running:
        yield running


def ask_grpc(server, authority: trustme.CA, certificate: trustme.LeafCert | None) -> str:
    key = chain = None
    if certificate:
        key = certificate.private_key_pem.bytes()
        chain = pem(certificate.cert_chain_pems).encode()
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, chain)
    with grpc.secure_channel(server.target, credentials) as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "m"
        try:
            model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=10)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


def ask_rest(server, authority: trustme.CA, certificate: trustme.LeafCert | None) -> int:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate:
        certificate.configure_cert(context)
    return ask(f"{server.rest_url}/v1/models/m", context=context).code


def test_a_client_with_a_certificate_of_the_authority_gets_in(server, authority):
    certificate = authority.issue_cert("client")
    assert ask_grpc(server, authority, certificate) == "OK"
    assert server.rest_url.startswith("https://")
    assert ask_rest(server, authority, certificate) == 200


def strangers(authority: trustme.CA) -> dict[str, trustme.LeafCert | None]:
    yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    return {
        "none": None,
        "expired": authority.issue_cert("client", not_after=yesterday),
        "another authority's": trustme.CA().issue_cert("client"),
    }


@pytest.mark.parametrize("which", ["none", "expired", "another authority's"])
def test_nobody_else_gets_in(server, authority, which):
    certificate = strangers(authority)[which]
    assert ask_grpc(server, authority, certificate) == "UNAVAILABLE"
    with pytest.raises(OSError):
        ask_rest(server, authority, certificate)


def test_plain_text_gets_in_on_neither_port(server):
    with pytest.raises(OSError):
        ask(server.rest_url.replace("https", "http") + "/v1/models/m")
    with grpc.insecure_channel(server.target) as channel:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "m"
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=10)


def test_a_client_that_never_shakes_hands_holds_up_nobody(server, authority):
    host, port = server.rest_url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port))):
        assert ask_rest(server, authority, authority.issue_cert("client")) == 200


def test_tls_without_client_certificates(push, authority, tmp_path):
    push(1.0, tmp_path / "m", 1)
    own = authority.issue_cert("localhost", "127.0.0.1")
    (tmp_path / "ssl.config").write_text(
        text_proto(
            server_key=own.private_key_pem.bytes().decode(),
            server_cert=pem(own.cert_chain_pems),
        )
    )
    flags = (f"--ssl_config_file={tmp_path}/ssl.config", "--rest_api_port=-1")
    with local_server(tmp_path / "m", "m", flags=flags) as server:
        assert ask_grpc(server, authority, None) == "OK"
        assert ask_rest(server, authority, None) == 200
