"""The service of users and their consent, all but DeleteUser, which `erasure.py` adds."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Row, and_, bindparam, insert, select, update

from cloud.profiles import Consent
from cloud.service import names, pages, requests
from cloud.service.audit import AuditLog
from cloud.service.auth import Principal, principal
from cloud.service.boundary import Context
from cloud.service.errors import (
    AlreadyExists,
    Conflict,
    InvalidFields,
    NotFound,
    Violation,
)
from cloud.service.state import Database, new_uid, now
from cloud.service.tables import User
from cloud.service.vault import Vault
from protos.v1 import users_pb2, users_pb2_grpc

# Built once: building a statement costs more than SQLite needs to answer it.
IS_CALLERS = and_(
    User.tenant == bindparam("tenant"), User.user_id == bindparam("user_id"), ~User.erasing
)
"""The user that `find_user` finds, for statements that find what is theirs along with them."""
_FIND = select(*User.__table__.columns).where(IS_CALLERS)
_MASKABLE = ("purpose", "retention_days", "third_party")


def timestamp(microseconds: int) -> Timestamp:
    """A time of ours as protobuf has it."""
    found = Timestamp()
    found.FromMicroseconds(microseconds)
    return found


def find_user(connection: Connection, tenant: str, user_id: str) -> Row[Any]:
    """The row of a user of this tenant.

    Raises:
        NotFound: there is none, it is another tenant's, or it is being erased.
    """
    row = connection.execute(_FIND, {"tenant": tenant, "user_id": user_id}).first()
    if row is None:
        raise NotFound(names.user(user_id))
    return row


class Users(users_pb2_grpc.UserServiceServicer):
    """`pocketune.v1.UserService`."""

    def __init__(self, database: Database, vault: Vault, audit: AuditLog) -> None:
        self._database = database
        self._vault = vault
        self._audit = audit

    async def CreateUser(
        self, request: users_pb2.CreateUserRequest, context: Context
    ) -> users_pb2.User:
        caller = principal.get()
        tenant = caller.tenant
        if answered := await self._database.read(lambda c: self._replayed(c, tenant, request)):
            return answered
        uid = new_uid()
        # The key comes first: a user without a key could not be served, while a key whose user
        # was never written is swept away.
        await asyncio.to_thread(self._vault.create, tenant, uid)
        return await self._database.write(lambda c: self._create(c, caller, uid, request))

    def _create(
        self,
        connection: Connection,
        caller: Principal,
        uid: str,
        request: users_pb2.CreateUserRequest,
    ) -> users_pb2.User:
        tenant = caller.tenant
        if answered := self._replayed(connection, tenant, request):
            return answered
        same = (User.tenant == tenant) & (User.user_id == request.user_id)
        if connection.execute(select(User.uid).where(same)).first():
            raise AlreadyExists(names.user(request.user_id))
        time, given = now(), request.consent
        row = {
            "uid": uid, "tenant": tenant, "user_id": request.user_id, "create_time": time,
            "purpose": given.purpose or Consent.purpose,
            "retention_days": given.retention_days or Consent.retention_days,
            "third_party": given.third_party, "consent_version": 1, "consent_time": time,
            "erasing": False,
        }  # fmt: skip
        connection.execute(insert(User).values(row))
        space = self._vault.space(tenant, uid)
        answer = users_pb2.User(
            name=names.user(request.user_id), uid=uid, create_time=timestamp(time)
        )
        requests.remember(connection, tenant, uid, request, space, answer)
        self._audit.record(connection, caller, "CreateUser", answer.name)
        return answer

    def _replayed(
        self, connection: Connection, tenant: str, request: users_pb2.CreateUserRequest
    ) -> users_pb2.User | None:
        """What the same call was answered before, whoever then was given the user id."""
        uid = requests.owner(connection, tenant, request)
        if uid is None:
            return None
        space = self._vault.space(tenant, uid)
        return requests.replay(connection, tenant, request, space, users_pb2.User())

    async def GetUser(self, request: users_pb2.GetUserRequest, context: Context) -> users_pb2.User:
        tenant = principal.get().tenant
        (user_id,) = names.parts("pocketune.dev/User", request.name)
        return _user(await self._database.read(lambda c: find_user(c, tenant, user_id)))

    async def ListUsers(
        self, request: users_pb2.ListUsersRequest, context: Context
    ) -> users_pb2.ListUsersResponse:
        tenant = principal.get().tenant
        size = pages.size(request.page_size)
        last = pages.after(request.page_token, "users", str)
        query = (
            select(*User.__table__.columns)
            .where(User.tenant == tenant, ~User.erasing)
            .order_by(User.user_id)
            .limit(size + 1)
        )
        if last is not None:
            query = query.where(User.user_id > last[0])
        rows = await self._database.read(lambda c: c.execute(query).all())
        more = pages.token("users", [rows[size - 1].user_id]) if len(rows) > size else ""
        return users_pb2.ListUsersResponse(users=map(_user, rows[:size]), next_page_token=more)

    async def GetConsent(
        self, request: users_pb2.GetConsentRequest, context: Context
    ) -> users_pb2.Consent:
        tenant = principal.get().tenant
        (user_id,) = names.parts("pocketune.dev/Consent", request.name)
        return _consent(await self._database.read(lambda c: find_user(c, tenant, user_id)))

    async def UpdateConsent(
        self, request: users_pb2.UpdateConsentRequest, context: Context
    ) -> users_pb2.Consent:
        caller = principal.get()
        try:
            (user_id,) = names.parts("pocketune.dev/Consent", request.consent.name)
        except ValueError as error:
            raise InvalidFields([Violation("consent.name", str(error))]) from None
        changes = _masked(request)
        return await self._database.write(
            lambda c: self._update(c, caller, user_id, request, changes)
        )

    def _update(
        self,
        connection: Connection,
        caller: Principal,
        user_id: str,
        request: users_pb2.UpdateConsentRequest,
        changes: dict[str, Any],
    ) -> users_pb2.Consent:
        tenant = caller.tenant
        row = find_user(connection, tenant, user_id)
        space = self._vault.space(tenant, row.uid)
        answer = requests.replay(connection, tenant, request, space, users_pb2.Consent())
        if answer is not None:
            return answer
        version = row.consent_version
        if request.consent.etag not in ("", _etag(version)):
            raise Conflict(f"{request.consent.name}: changed meanwhile; read it and try again")
        changed = connection.execute(
            update(User)
            .where(User.uid == row.uid, User.consent_version == version)
            .values(**changes, consent_version=version + 1, consent_time=now())
        )
        if changed.rowcount != 1:
            raise Conflict(f"{request.consent.name}: changed meanwhile; read it and try again")
        answer = _consent(find_user(connection, tenant, user_id))
        requests.remember(connection, tenant, row.uid, request, space, answer)
        self._audit.record(connection, caller, "UpdateConsent", answer.name)
        return answer


def _masked(request: users_pb2.UpdateConsentRequest) -> dict[str, Any]:
    paths = list(request.update_mask.paths) or list(_MASKABLE)
    unknown = [path for path in paths if path not in _MASKABLE]
    if unknown:
        problem = f"{unknown[0]!r} cannot be changed; expected {', '.join(_MASKABLE)}"
        raise InvalidFields([Violation("update_mask", problem)])
    changes = {path: getattr(request.consent, path) for path in paths}
    if changes.get("retention_days") == 0:
        raise InvalidFields([Violation("consent.retention_days", "expected 1 or more")])
    return changes


def _etag(version: int) -> str:
    return f"{version:x}"


def _user(row: Row[Any]) -> users_pb2.User:
    return users_pb2.User(
        name=names.user(row.user_id), uid=row.uid, create_time=timestamp(row.create_time)
    )


def _consent(row: Row[Any]) -> users_pb2.Consent:
    return users_pb2.Consent(
        name=f"{names.user(row.user_id)}/consent",
        purpose=row.purpose,
        retention_days=row.retention_days,
        third_party=row.third_party,
        etag=_etag(row.consent_version),
        update_time=timestamp(row.consent_time),
    )
