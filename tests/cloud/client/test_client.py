"""The client against a real server: simple calls, pages, errors, retries, credentials."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from pathlib import Path

import pytest

import cloud.client
from cloud.client import (
    AlreadyExists,
    AsyncClient,
    Client,
    Conflict,
    InvalidRequest,
    NotFound,
    Tls,
    Unauthenticated,
    Unreachable,
)
from protos.errors import InputError
from protos.v1 import profiles_pb2, users_pb2


def name() -> str:
    return f"u{uuid.uuid4().hex[:12]}"


def test_the_public_names_are_those_that_are_listed():
    public = {n for n, v in vars(cloud.client).items() if inspect.isclass(v)}
    assert set(cloud.client.__all__) == public


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    def methods(kind: type) -> dict[str, list[tuple[str, object]]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [(p.name, p.default) for p in inspect.signature(method).parameters.values()]
            for name, method in found
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


def test_a_user_is_made_read_changed_and_listed(address: str):
    with Client(address) as client:
        user = name()
        made = client.create_user(user, users_pb2.Consent(retention_days=30))
        assert client.get_user(f"users/{user}") == made
        consent = client.get_consent(f"users/{user}")
        assert consent.retention_days == 30
        consent.third_party = True
        changed = client.update_consent(consent, ["third_party"])
        assert changed.third_party
        with pytest.raises(Conflict, match="changed meanwhile"):  # the etag is an old one
            client.update_consent(consent, ["third_party"])
        with pytest.raises(AlreadyExists):
            client.create_user(user)
        assert made.name in [each.name for each in client.list_users()]
        client.create_profile(f"users/{user}", "LaMP_4")
        client.delete_profile(f"users/{user}/profiles/LaMP_4")
        assert list(client.list_profiles(f"users/{user}")) == []


def test_lists_go_on_over_pages(address: str):
    async def main() -> None:
        async with AsyncClient(address) as client:
            user = f"users/{name()}"
            await client.create_user(user.removeprefix("users/"))
            profile = (await client.create_profile(user, "LaMP_4")).name
            items = [profiles_pb2.Item(input=f"in {n}", output=f"out {n}") for n in range(250)]
            await client.upload(profile, items)
            found = [item.input async for item in client.list_items(profile)]
            assert found == [f"in {n}" for n in range(250)]

    asyncio.run(main())


def test_an_error_says_which_fields_are_wrong_and_why(address: str):
    with Client(address) as client:
        with pytest.raises(InvalidRequest) as error:
            client.create_user("../ann", users_pb2.Consent(retention_days=-1))
        assert [v.field for v in error.value.violations] == ["user_id", "consent.retention_days"]
        assert error.value.reason == "INVALID_FIELDS"
        with pytest.raises(NotFound, match="users/nobody: not found"):
            client.get_user("users/nobody")
        with pytest.raises(InvalidRequest, match="bundle"):
            client.download("users/ann", Path("nowhere"))


def test_calls_outlive_a_connection_that_breaks(address: str, network):
    relay = network(address, cuts=[200], refuse=1)
    with Client(relay.address) as client:
        user = name()
        assert client.create_user(user).name == f"users/{user}"  # once, by its request id
    assert relay.connections > 2


def test_a_server_that_is_not_there_is_named(free_address: str):
    started = time.monotonic()
    with Client(free_address, timeout_s=10) as client, pytest.raises(Unreachable) as error:
        client.get_user("users/ann")
    assert free_address in str(error.value)
    assert time.monotonic() - started < 11


def test_a_credential_never_travels_in_clear_text():
    with pytest.raises(InputError, match="TLS"):
        Client("example.com:50051", "pkt_secret")
    with pytest.raises(InputError, match="together"):
        Client("example.com:50051", "pkt_secret", Tls(cert_file=Path("x")))
    Client("example.com:50051").close()  # nothing is sent


def test_an_api_key_over_tls_opens_its_tenant(start, certificates: Path, tmp_path: Path):
    from cloud.service.key_file import add_key

    keys = tmp_path / "keys.json"
    one, other = add_key(keys, "acme", "one"), add_key(keys, "blue", "two")
    server = start("--no-worker", "--api-keys", keys, "--tls-cert", certificates / "cert.pem",
                   "--tls-key", certificates / "key.pem")  # fmt: skip
    tls = Tls(certificates / "cert.pem")
    given = iter([one, one])
    with Client(server.address, lambda: next(given), tls) as client:  # asked at every call
        client.create_user("ann")
        assert client.get_user("users/ann").name == "users/ann"
    with Client(server.address, other, tls) as client, pytest.raises(NotFound):
        client.get_user("users/ann")
    with Client(server.address, "pkt_wrong", tls) as client, pytest.raises(Unauthenticated):
        client.get_user("users/ann")
    server.stop()
    said = server.errors.read_text()
    assert "GetUser" in said
    assert not any(secret in said for secret in (one, other, "pkt_wrong"))
