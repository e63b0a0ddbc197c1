"""Who is calling: API keys, JSON Web Tokens, client certificates; and which tenant they belong to.

In: the metadata of a call. Out: a `Principal`, or `Unauthenticated`. A credential names exactly one
tenant, and no request can name another. Keys are stored as sha256: they are 256 random bits, so
there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import jwt

from cloud.service.errors import Unauthenticated, Unavailable
from cloud.service.names import ID
from cloud.service.settings import Settings
from protos.artifacts import read_json
from protos.errors import InputError

LOCAL_TENANT = "local"
KEY_PREFIX = "pkt_"
_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
_LEEWAY_S = 30
_REMEMBERED_S = 60.0
_REMEMBERED = 10_000


@dataclass(frozen=True)
class Principal:
    """An authenticated caller. subject: the key's id or the token's `sub`, for the audit log."""

    tenant: str
    subject: str


principal: ContextVar[Principal] = ContextVar("principal")
"""The caller of the RPC that is being served."""

Verify = Callable[[str], tuple[Principal, float]]
"""A credential -> whose it is, and until when (seconds since 1970)."""


class Authenticator:
    """Checks credentials and remembers for a minute those that it has seen to be good."""

    def __init__(self, settings: Settings) -> None:
        self._open = not settings.has_credentials
        keys = settings.api_keys_file
        self._keys = read_api_keys(keys) if keys else {}
        self._tokens = _token_verifier(settings)
        self._seen: dict[str, tuple[Principal, float]] = {}

    async def authenticate(self, metadata: Mapping[str, str | bytes]) -> Principal:
        """The caller of a call with this metadata.

        Raises:
            Unauthenticated: no `authorization: Bearer …`, or one that does not hold.
        """
        if self._open:
            return Principal(LOCAL_TENANT, LOCAL_TENANT)
        scheme, _, credential = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise Unauthenticated("send `authorization: Bearer` with an API key or a token")
        digest = hashlib.sha256(credential.encode()).hexdigest()
        found, until = self._seen.get(digest, (None, 0.0))
        if found is None or time.time() >= until:
            # In a thread: it may have to fetch the keys of whoever signs the tokens.
            found, until = await asyncio.to_thread(self._verify, credential, digest)
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            self._seen[digest] = (found, min(until, time.time() + _REMEMBERED_S))
        return found

    def _verify(self, credential: str, digest: str) -> tuple[Principal, float]:
        if credential.startswith(KEY_PREFIX):
            if digest in self._keys:
                return self._keys[digest], float("inf")
        elif self._tokens:
            return self._tokens(credential)
        raise Unauthenticated("the credentials are not known here")


def make_api_key(tenant: str, key_id: str) -> tuple[str, dict[str, str]]:
    """A new API key, and the row for `api_keys_file` that lets it in."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, {"id": key_id, "tenant": checked_tenant(tenant), "sha256": digest}


def read_api_keys(path: Path) -> dict[str, Principal]:
    """sha256 of a key -> whose it is.

    Raises:
        InputError: the file is missing or malformed.
    """
    rows = read_json(path)
    try:
        found = {
            str(row["sha256"]): Principal(checked_tenant(row["tenant"]), str(row["id"]))
            for row in rows
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected a list of id, tenant, sha256 ({error})") from None
    if not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in found):
        raise InputError(f"{path}: a sha256 is not 64 hex characters")
    return found


def checked_tenant(tenant: Any) -> str:
    """A tenant's id, which becomes part of blob names.

    Raises:
        ValueError: it is no id.
    """
    if not isinstance(tenant, str) or not re.fullmatch(ID, tenant, re.ASCII):
        raise ValueError(f"tenant {tenant!r} is no id")
    return tenant


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """TLS, and client certificates where an authority for them is set; None: plain."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    client_ca = settings.tls_client_ca_file
    return grpc.ssl_server_credentials(
        [(settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())],
        root_certificates=client_ca.read_bytes() if client_ca else None,
        require_client_auth=client_ca is not None,
    )


def _token_verifier(settings: Settings) -> Verify | None:
    key_of = _key_finder(settings)
    if key_of is None:
        return None
    issuer = settings.jwt_issuer or None

    def verify(token: str) -> tuple[Principal, float]:
        try:
            claims = jwt.decode(
                token, key_of(token), algorithms=list(_ALGORITHMS), leeway=_LEEWAY_S,
                audience=settings.jwt_audience, issuer=issuer,
                options={"require": ["exp", "aud", "sub", settings.jwt_tenant_claim]},
            )  # fmt: skip
            tenant = checked_tenant(claims[settings.jwt_tenant_claim])
        except jwt.PyJWKClientConnectionError as error:
            raise Unavailable("the keys that verify tokens cannot be fetched") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthenticated(f"the token does not hold: {type(error).__name__}") from None
        return Principal(tenant, str(claims["sub"])), float(claims["exp"])

    return verify


def _key_finder(settings: Settings) -> Callable[[str], Any] | None:
    """A token -> the key that must have signed it: a PEM file, a JWKS file, or a JWKS address."""
    if settings.jwt_jwks_url:
        client = jwt.PyJWKClient(settings.jwt_jwks_url, timeout=5)
        return lambda token: client.get_signing_key_from_jwt(token).key
    if settings.jwt_key_file is None:
        return None
    text = settings.jwt_key_file.read_bytes()
    if not text.lstrip().startswith(b"{"):
        return lambda token: text
    keys = jwt.PyJWKSet.from_dict(cast("dict[str, Any]", json.loads(text)))

    def find(token: str) -> Any:
        key_id = jwt.get_unverified_header(token).get("kid")
        for key in keys.keys:
            if key.key_id == key_id:
                return key.key
        raise jwt.InvalidTokenError("no such key")

    return find
