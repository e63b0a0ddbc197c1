"""Idempotency (AIP-155): a mutating call with a `request_id` happens once, also across a restart.

The answer is stored in the transaction that makes the change, sealed under the user's key. The same
id with another request is refused, so that a reused id is noticed and not mistaken for a retry.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

from google.protobuf.message import Message
from sqlalchemy import Connection, insert, select

from cloud.service.errors import InvalidFields, Violation
from cloud.service.state import now
from cloud.service.tables import Request
from cloud.service.vault import Space

M = TypeVar("M", bound=Message)
_DIGEST_BYTES = 32


def replay(
    connection: Connection, tenant: str, request: Message, space: Space, answer: M
) -> M | None:
    """Fill `answer` with what this request was answered before; None: it is new.

    Raises:
        InvalidFields: the id was used for another request.
    """
    request_id = _id(request)
    if not request_id:
        return None
    key = (Request.tenant == tenant) & (Request.request_id == request_id)
    row = connection.execute(select(Request.method, Request.sealed).where(key)).first()
    if row is None:
        return None
    if row.method != request.DESCRIPTOR.name:
        raise _reused()
    plain = space.unseal(row.sealed, _context(tenant, request_id))
    if plain[:_DIGEST_BYTES] != _fingerprint(request):
        raise _reused()
    answer.ParseFromString(plain[_DIGEST_BYTES:])
    return answer


def owner(connection: Connection, tenant: str, request: Message) -> str | None:
    """The uid of the user in whose space the answer to this request id is sealed, if any."""
    request_id = _id(request)
    if not request_id:
        return None
    key = (Request.tenant == tenant) & (Request.request_id == request_id)
    return connection.execute(select(Request.user_uid).where(key)).scalar()


def remember(
    connection: Connection,
    tenant: str,
    user_uid: str | None,
    request: Message,
    space: Space,
    answer: Message,
) -> None:
    """Store the answer; a no-op where the caller gave no id."""
    request_id = _id(request)
    if not request_id:
        return
    plain = _fingerprint(request) + answer.SerializeToString()
    connection.execute(
        insert(Request).values(
            tenant=tenant,
            request_id=request_id,
            method=request.DESCRIPTOR.name,
            user_uid=user_uid,
            sealed=space.seal(plain, _context(tenant, request_id)),
            create_time=now(),
        )
    )


def _id(request: Message) -> str:
    return str(getattr(request, "request_id", ""))


def _fingerprint(request: Message) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _context(tenant: str, request_id: str) -> str:
    return f"requests/{tenant}/{request_id}"


def _reused() -> InvalidFields:
    return InvalidFields([Violation("request_id", "was used for another request; take a new one")])
