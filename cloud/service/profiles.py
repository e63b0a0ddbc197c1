"""The service of profiles; their items are in `items.py`."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection, Row, bindparam, delete, insert, select

from cloud.service import artifacts_store, items, names, pages, requests
from cloud.service.auth import Principal, principal
from cloud.service.boundary import Context
from cloud.service.errors import (
    AlreadyExists,
    Conflict,
    InvalidFields,
    NotFound,
    Violation,
)
from cloud.service.parts import Parts
from cloud.service.state import new_uid, now
from cloud.service.tables import Artifact, Operation, Profile, User
from cloud.service.users import IS_CALLERS, find_user, timestamp
from cloud.service.vault import Space
from cloud.tasks import TASKS, Task, custom_task
from protos.errors import InputError
from protos.v1 import profiles_pb2, profiles_pb2_grpc

_KINDS = {1: "generation", 2: "classification", 3: "rating"}
_PROFILE = "pocketune.dev/Profile"
_FIND = (
    select(*Profile.__table__.columns)
    .join(User, User.uid == Profile.user_uid)
    .where(IS_CALLERS, Profile.task == bindparam("task"))
)


def find_profile(connection: Connection, tenant: str, user_id: str, task: str) -> Row[Any]:
    """The row of a profile, and `user_uid` with it.

    Raises:
        NotFound: no such user of this tenant, or no such profile.
    """
    key = {"tenant": tenant, "user_id": user_id, "task": task}
    row = connection.execute(_FIND, key).first()
    if row is None:
        find_user(connection, tenant, user_id)
        raise NotFound(names.profile(user_id, task))
    return row


def task_of(name: str, profile: profiles_pb2.Profile) -> Task:
    """The task that a profile is written for.

    Raises:
        InvalidFields: a task of the caller's own that is not fully described.
    """
    if not profile.kind:
        if name in TASKS:
            return TASKS[name]
        problem = f"is required: {name!r} is none of {', '.join(TASKS)}"
        raise InvalidFields([Violation("profile.kind", problem)])
    if name in TASKS:
        raise InvalidFields([Violation("profile.kind", f"{name} is a LaMP task, leave it unset")])
    try:
        return custom_task(name, _KINDS[profile.kind], profile.prompt, tuple(profile.labels))
    except InputError as error:
        raise InvalidFields([Violation("profile", str(error))]) from None


def message_of(row: Row[Any], user_id: str, space: Space) -> profiles_pb2.Profile:
    """The `Profile` of a row."""
    profile = profiles_pb2.Profile.FromString(space.unseal(row.sealed, f"profiles/{row.uid}"))
    profile.name = names.profile(user_id, row.task)
    profile.item_count = row.item_count
    profile.create_time.CopyFrom(timestamp(row.create_time))
    profile.update_time.CopyFrom(timestamp(row.update_time))
    return profile


class Profiles(profiles_pb2_grpc.ProfileServiceServicer):
    """`pocketune.v1.ProfileService`."""

    def __init__(self, parts: Parts) -> None:
        self._database = parts.database
        self._vault = parts.vault
        self._audit = parts.audit

    async def CreateProfile(
        self, request: profiles_pb2.CreateProfileRequest, context: Context
    ) -> profiles_pb2.Profile:
        caller = principal.get()
        task_of(request.profile_id, request.profile)
        return await self._database.write(lambda c: self._create(c, caller, request))

    def _create(
        self,
        connection: Connection,
        caller: Principal,
        request: profiles_pb2.CreateProfileRequest,
    ) -> profiles_pb2.Profile:
        tenant = caller.tenant
        (user_id,) = names.parts("pocketune.dev/User", request.parent)
        user = find_user(connection, tenant, user_id)
        space = self._vault.space(tenant, user.uid)
        empty = profiles_pb2.Profile()
        if answered := requests.replay(connection, tenant, request, space, empty):
            return answered
        same = (Profile.user_uid == user.uid) & (Profile.task == request.profile_id)
        if connection.execute(select(Profile.uid).where(same)).first():
            raise AlreadyExists(names.profile(user_id, request.profile_id))
        uid, time = new_uid(), now()
        given = request.profile
        kept = profiles_pb2.Profile(
            kind=given.kind,
            prompt=given.prompt,
            labels=given.labels,
            language=given.language or "und",
        )
        connection.execute(
            insert(Profile).values(
                uid=uid,
                user_uid=user.uid,
                task=request.profile_id,
                item_count=0,
                sealed=space.seal(kept.SerializeToString(), f"profiles/{uid}"),
                create_time=time,
                update_time=time,
            )
        )
        row = find_profile(connection, tenant, user_id, request.profile_id)
        answer = message_of(row, user_id, space)
        requests.remember(connection, tenant, user.uid, request, space, answer)
        self._audit.record(connection, caller, "CreateProfile", answer.name)
        return answer

    async def GetProfile(
        self, request: profiles_pb2.GetProfileRequest, context: Context
    ) -> profiles_pb2.Profile:
        tenant = principal.get().tenant
        user_id, task = names.parts(_PROFILE, request.name)
        row = await self._database.read(lambda c: find_profile(c, tenant, user_id, task))
        return message_of(row, user_id, await self._vault.open(tenant, row.user_uid))

    async def ListProfiles(
        self, request: profiles_pb2.ListProfilesRequest, context: Context
    ) -> profiles_pb2.ListProfilesResponse:
        tenant = principal.get().tenant
        (user_id,) = names.parts("pocketune.dev/User", request.parent)
        size = pages.size(request.page_size)
        collection = f"{request.parent}/profiles"
        last = pages.after(request.page_token, collection, str)

        def query(connection: Connection) -> tuple[str, list[Row[Any]]]:
            user = find_user(connection, tenant, user_id)
            wanted = select(*Profile.__table__.columns).where(Profile.user_uid == user.uid)
            if last is not None:
                wanted = wanted.where(Profile.task > last[0])
            found = connection.execute(wanted.order_by(Profile.task).limit(size + 1)).all()
            return user.uid, list(found)

        uid, rows = await self._database.read(query)
        space = await self._vault.open(tenant, uid)
        more = pages.token(collection, [rows[size - 1].task]) if len(rows) > size else ""
        return profiles_pb2.ListProfilesResponse(
            profiles=[message_of(row, user_id, space) for row in rows[:size]],
            next_page_token=more,
        )

    async def DeleteProfile(
        self, request: profiles_pb2.DeleteProfileRequest, context: Context
    ) -> Empty:
        caller = principal.get()
        keys = await self._database.write(lambda c: self._delete(c, caller, request))
        await asyncio.to_thread(lambda: [self._vault.blobs.delete(key) for key in keys])
        return Empty()

    def _delete(
        self,
        connection: Connection,
        caller: Principal,
        request: profiles_pb2.DeleteProfileRequest,
    ) -> list[str]:
        """Delete a profile and its datasets; returns the keys of blobs that are now unneeded."""
        tenant = caller.tenant
        user_id, task = names.parts(_PROFILE, request.name)
        user = find_user(connection, tenant, user_id)
        space = self._vault.space(tenant, user.uid)
        if requests.replay(connection, tenant, request, space, Empty()) is not None:
            return []
        row = find_profile(connection, tenant, user_id, task)
        if connection.execute(
            select(Operation.uid).where(Operation.conflict_key == user.uid)
        ).first():
            raise Conflict(f"{names.user(user_id)}: an operation is at work; cancel it or wait")
        datasets = artifacts_store.rows().where(
            Artifact.profile_uid == row.uid, Artifact.kind == "Dataset"
        )
        keys = [
            key
            for dataset in connection.execute(datasets).all()
            for key in artifacts_store.release(connection, space, dataset)
        ]
        connection.execute(delete(Profile).where(Profile.uid == row.uid))
        requests.remember(connection, tenant, user.uid, request, space, Empty())
        self._audit.record(connection, caller, "DeleteProfile", request.name)
        return keys

    async def AppendItems(
        self, request_iterator: Any, context: Context
    ) -> profiles_pb2.AppendItemsResponse:
        return await items.append(self._database, self._vault, self._audit, request_iterator)

    async def GetUpload(
        self, request: profiles_pb2.GetUploadRequest, context: Context
    ) -> profiles_pb2.Upload:
        return await items.get_upload(self._database, request)

    async def ListItems(
        self, request: profiles_pb2.ListItemsRequest, context: Context
    ) -> profiles_pb2.ListItemsResponse:
        return await items.list_items(self._database, self._vault, request)
