"""Who gets in, over real connections: API keys, tokens, TLS, client certificates, tenants."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import jwt
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from pydantic import ValidationError

from cloud.client import Client, Tls, Unreachable
from cloud.remote_cli import remote
from cloud.service.auth import make_api_key
from cloud.service.settings import Settings
from protos.v1 import users_pb2, users_pb2_grpc

Code = grpc.StatusCode
_HERE = x509.IPAddress(ip_address("127.0.0.1"))


def get(channel: grpc.Channel, credential: str = "", name: str = "users/ann") -> users_pb2.User:
    metadata = [("authorization", f"Bearer {credential}")] if credential else []
    return users_pb2_grpc.UserServiceStub(channel).GetUser(
        users_pb2.GetUserRequest(name=name), metadata=metadata
    )


def code_of(call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code()


def create(channel: grpc.Channel, credential: str, user: str = "ann") -> None:
    users_pb2_grpc.UserServiceStub(channel).CreateUser(
        users_pb2.CreateUserRequest(user_id=user),
        metadata=[("authorization", f"Bearer {credential}")],
    )


def test_an_api_key_opens_its_tenant_and_no_other(serve, tmp_path: Path):
    (key_a, row_a), (key_b, row_b) = make_api_key("acme", "1"), make_api_key("blue", "2")
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([row_a, row_b]))
    assert key_a not in path.read_text()
    with grpc.insecure_channel(serve(api_keys_file=path)) as channel:
        create(channel, key_a)
        assert get(channel, key_a).name == "users/ann"
        assert code_of(lambda: get(channel, key_b)) is Code.NOT_FOUND
        create(channel, key_b)  # the same id is free in another tenant
        assert get(channel, key_b).uid != get(channel, key_a).uid
        for wrong in ("", "pkt_nonsense", key_a[:-1], "eyJ.x.y"):
            assert code_of(lambda wrong=wrong: get(channel, wrong)) is Code.UNAUTHENTICATED


def test_a_token_counts_if_signature_audience_time_and_tenant_hold(serve, tmp_path: Path):
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": "k1"}
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk]}))

    def token(signer=key, kid="k1", **changes) -> str:
        claims = {"sub": "svc", "aud": "pocketune", "tenant": "acme", "exp": time.time() + 600}
        kept = {k: v for k, v in (claims | changes).items() if v is not None}
        return jwt.encode(kept, signer, "ES256", headers={"kid": kid})

    with grpc.insecure_channel(serve(jwt_key_file=path)) as channel:
        create(channel, token())
        assert get(channel, token()).name == "users/ann"
        assert code_of(lambda: get(channel, token(tenant="blue"))) is Code.NOT_FOUND
        none = jwt.encode({"sub": "svc", "aud": "pocketune", "tenant": "acme"}, None, "none")
        wrong_claims = ({"aud": "x"}, {"exp": time.time() - 99}, {"exp": None}, {"tenant": None})
        bad = [token(**claims) for claims in (*wrong_claims, {"tenant": "../x"}, {"kid": "k2"})]
        for wrong in (token(other), none, *bad):
            assert code_of(lambda wrong=wrong: get(channel, wrong)) is Code.UNAUTHENTICATED
    pem = tmp_path / "public.pem"
    pem.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with grpc.insecure_channel(serve(jwt_key_file=pem)) as channel:
        assert get(channel, token()).name == "users/ann"


def certificate(folder: Path, name: str, issuer=None):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, by = issuer or (key, subject)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(by).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([_HERE]), False)
        .add_extension(x509.BasicConstraints(issuer is None, None), True)
    )  # fmt: skip
    (folder / f"{name}.pem").write_bytes(builder.sign(signer, SHA256()).public_bytes(Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return key, subject


def test_mutual_tls_lets_in_whom_the_authority_signed(serve, tmp_path: Path):
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", authority)
    certificate(tmp_path, "client", authority)
    certificate(tmp_path, "stranger")
    address = serve(
        tls_cert_file=tmp_path / "server.pem",
        tls_key_file=tmp_path / "server.key",
        tls_client_ca_file=tmp_path / "ca.pem",
    )

    def credentials(name: str = "") -> grpc.ChannelCredentials:
        read = lambda file: (tmp_path / file).read_bytes()  # noqa: E731
        pair = (read(f"{name}.key"), read(f"{name}.pem")) if name else (None, None)
        return grpc.ssl_channel_credentials(read("ca.pem"), *pair)

    with grpc.secure_channel(address, credentials("client")) as channel:
        assert code_of(lambda: get(channel)) is Code.NOT_FOUND
    for name in ("", "stranger"):
        with grpc.secure_channel(address, credentials(name)) as channel:
            assert code_of(lambda channel=channel: get(channel)) is Code.UNAVAILABLE
    with grpc.insecure_channel(address) as channel:
        assert code_of(lambda: get(channel)) is Code.UNAVAILABLE


def test_the_python_client_and_remote_show_their_certificate(serve, tmp_path: Path):
    authority = certificate(tmp_path, "ca")
    for name in ("server", "client"):
        certificate(tmp_path, name, authority)
    certificate(tmp_path, "stranger")
    address = serve(
        tls_cert_file=tmp_path / "server.pem",
        tls_key_file=tmp_path / "server.key",
        tls_client_ca_file=tmp_path / "ca.pem",
    )

    def tls(name: str = "", ca: str = "ca") -> Tls:
        own = (tmp_path / f"{name}.pem", tmp_path / f"{name}.key") if name else (None, None)
        return Tls(tmp_path / f"{ca}.pem", *own)

    with Client(address, tls=tls("client")) as client:
        assert client.create_user("ann").name == "users/ann"
    own = [str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key")]
    options = [text for pair in zip(("--ca", "--cert", "--key"), own, strict=True) for text in pair]
    assert CliRunner().invoke(remote, ["status", "--server", address, *options]).exit_code == 0

    def refused(wrong: Tls | None) -> str:
        with Client(address, tls=wrong) as client, pytest.raises(Unreachable) as error:
            client.get_user("users/ann")
        return str(error.value)

    # At once, for each is tried several times before it is given up.
    wrong = (tls(), tls("stranger"), tls("client", ca="stranger"), None)
    with ThreadPoolExecutor() as pool:
        assert all(address in said for said in pool.map(refused, wrong))


def test_health_and_reflection_answer_without_credentials(serve, tmp_path: Path):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([make_api_key("acme", "1")[1]]))
    with grpc.insecure_channel(serve(api_keys_file=path)) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "pocketune.v1.ProfileService" in services


@pytest.mark.parametrize(
    "given",
    [{"host": "0.0.0.0"}, {"tls_cert_file": "x"}, {"tls_client_ca_file": "x"}, {"unknown": 1},
     {"port": 70000},     {"host": "0.0.0.0", "tls_cert_file": "x", "tls_key_file": "y"}],
)  # fmt: skip
def test_an_unsafe_or_unknown_configuration_does_not_start(given: dict[str, object]):
    with pytest.raises(ValidationError):
        Settings(**given)  # type: ignore[arg-type]
