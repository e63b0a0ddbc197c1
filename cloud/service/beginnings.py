"""How long operations begin: the RPCs that check what is asked, write a row and queue a job.

In: requests. Out: `Operation`s, which the pipelines of the same name work off (`pipelines.py`).
Everything that can be known at once is refused at once: resources that are not there, options that
are out of range, consent that was not given. One class for each service, to be inherited by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.longrunning import operations_pb2 as longrunning
from sqlalchemy import Connection, Row

from cloud.profiles import MIN_ITEMS
from cloud.service import artifacts_store, limits, messages, names, operations, options
from cloud.service.auth import Principal, principal
from cloud.service.boundary import Context
from cloud.service.errors import AlreadyExists, InvalidFields, NotFound, Violation, WrongState
from cloud.service.launch import launch
from cloud.service.parts import Parts
from cloud.service.profiles import Profiles, find_profile
from cloud.service.users import find_user
from cloud.service.vault import Space
from protos.v1 import adapters_pb2, bases_pb2, bundles_pb2, profiles_pb2

_USER, _PROFILE, _BASE = "pocketune.dev/User", "pocketune.dev/Profile", "pocketune.dev/Base"
_LIGHT = "cpu"


def find_base(connection: Connection, tenant: str, name: str) -> Row[Any]:
    """The row of a base, by its resource name.

    Raises:
        NotFound: this tenant has none of that name.
    """
    (base_id,) = names.parts(_BASE, name)
    row = messages.base_row(connection, tenant, base_id)
    if row is None:
        raise NotFound(name)
    return row


class _Beginnings:
    """What all of them need."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._settings = parts.settings
        self._database = parts.database
        self._vault = parts.vault
        self._queue = parts.queue
        self._audit = parts.audit

    def _begin(
        self,
        connection: Connection,
        caller: Principal,
        new: operations.New,
        kind: str,
        check: Callable[[], None],
    ) -> longrunning.Operation:
        """Begin it if `check` allows; a repeated call is answered as before in any case."""

        def allow() -> None:
            check()
            limits.check_quotas(connection, caller.tenant, self._settings)
            self._audit.record(connection, caller, new.method, new.target)

        return launch(connection, self._queue, new, self._space(new), kind, allow)

    def _check_recipe(self, recipe: str) -> None:
        known = self._settings.recipes
        if recipe not in known:
            problem = f"{recipe!r} is unknown; known: {', '.join(known)}"
            raise InvalidFields([Violation("recipe", problem)])

    def _space(self, new: operations.New) -> Space:
        if new.user_uid is None:
            return self._vault.shared
        return self._vault.space(new.tenant, new.user_uid)


class ProfileBeginnings(_Beginnings, Profiles):
    """Augment and personalize; with `Profiles` it is the whole ProfileService."""

    def __init__(self, parts: Parts) -> None:
        _Beginnings.__init__(self, parts)
        Profiles.__init__(self, parts)

    async def AugmentProfile(
        self, request: profiles_pb2.AugmentProfileRequest, context: Context
    ) -> longrunning.Operation:
        caller = principal.get()
        tenant = caller.tenant
        path = names.parts(_PROFILE, request.name)
        spec = options.teacher_spec(self._settings, request.options.teacher)

        def begin(connection: Connection) -> longrunning.Operation:
            profile = find_profile(connection, tenant, *path)
            uid = profile.user_uid
            new = operations.New(tenant, uid, "AugmentProfile", request.name, uid, request)
            return self._begin(
                connection, caller, new, self._settings.training_queue,
                lambda: _check_profile(connection, tenant, path[0], profile, spec),
            )  # fmt: skip

        return await self._database.write(begin)

    async def PersonalizeProfile(
        self, request: profiles_pb2.PersonalizeProfileRequest, context: Context
    ) -> longrunning.Operation:
        caller = principal.get()
        tenant = caller.tenant
        path = names.parts(_PROFILE, request.name)
        spec = options.teacher_spec(self._settings, request.augment.teacher, "augment.teacher")
        self._check_recipe(request.recipe)

        def begin(connection: Connection) -> longrunning.Operation:
            base = find_base(connection, tenant, request.base)
            options.training(request.train, base.source, self._settings, "train")
            profile = find_profile(connection, tenant, *path)
            uid = profile.user_uid
            new = operations.New(
                tenant, uid, "PersonalizeProfile", request.name, uid, request, base.uid
            )
            return self._begin(
                connection, caller, new, self._settings.training_queue,
                lambda: _check_profile(connection, tenant, path[0], profile, spec),
            )  # fmt: skip

        return await self._database.write(begin)


class AdapterBeginnings(_Beginnings):
    """Train."""

    async def TrainAdapter(
        self, request: adapters_pb2.TrainAdapterRequest, context: Context
    ) -> longrunning.Operation:
        caller = principal.get()
        tenant = caller.tenant
        path = names.parts(_PROFILE, request.profile)
        _check_owner(request.parent, request.profile, "profile")

        def begin(connection: Connection) -> longrunning.Operation:
            profile = find_profile(connection, tenant, *path)
            base = find_base(connection, tenant, request.base)
            options.training(request.options, base.source, self._settings)
            uid = profile.user_uid
            new = operations.New(
                tenant, uid, "TrainAdapter", request.profile, uid, request, base.uid
            )
            return self._begin(
                connection, caller, new, self._settings.training_queue,
                lambda: _exists(find_dataset(connection, profile, request.dataset)),
            )  # fmt: skip

        return await self._database.write(begin)


class BundleBeginnings(_Beginnings):
    """Export."""

    async def ExportBundle(
        self, request: bundles_pb2.ExportBundleRequest, context: Context
    ) -> longrunning.Operation:
        caller = principal.get()
        tenant = caller.tenant
        user_id, _ = names.parts("pocketune.dev/Adapter", request.adapter)
        _check_owner(request.parent, request.adapter, "adapter")
        self._check_recipe(request.recipe)

        def begin(connection: Connection) -> longrunning.Operation:
            user = find_user(connection, tenant, user_id)
            new = operations.New(
                tenant, user.uid, "ExportBundle", request.adapter, user.uid, request
            )
            return self._begin(
                connection, caller, new, _LIGHT,
                lambda: _exists(find_adapter(connection, user.uid, request.adapter)),
            )  # fmt: skip

        return await self._database.write(begin)


class BaseBeginnings(_Beginnings):
    """Take in a base, and lower it."""

    async def CreateBase(
        self, request: bases_pb2.CreateBaseRequest, context: Context
    ) -> longrunning.Operation:
        caller = principal.get()
        tenant = caller.tenant
        options.base_spec(self._settings, request.base.source)
        target = f"bases/{request.base_id}"

        def begin(connection: Connection) -> longrunning.Operation:
            key = f"base/{tenant}/{request.base_id}"
            new = operations.New(tenant, None, "CreateBase", target, key, request)
            return self._begin(
                connection,
                caller,
                new,
                _LIGHT,
                lambda: _check_new(connection, tenant, request.base_id),
            )

        return await self._database.write(begin)

    async def LowerBase(
        self, request: bases_pb2.LowerBaseRequest, context: Context
    ) -> longrunning.Operation:
        caller = principal.get()
        tenant = caller.tenant
        self._check_recipe(request.recipe)

        def begin(connection: Connection) -> longrunning.Operation:
            base = find_base(connection, tenant, request.name)
            key = f"lower/{base.uid}/{request.recipe}"
            new = operations.New(tenant, None, "LowerBase", request.name, key, request)
            return self._begin(connection, caller, new, _LIGHT, lambda: None)

        return await self._database.write(begin)


def find_dataset(connection: Connection, profile: Row[Any], artifact_id: str) -> Row[Any]:
    """A dataset of a profile, by its id; the newest where that is empty.

    Raises:
        NotFound: the profile has no such dataset. WrongState: it has none at all.
    """
    if not artifact_id:
        row = artifacts_store.newest(connection, profile.user_uid, "Dataset", profile.uid)
        if row is None:
            raise WrongState("the profile has no dataset; call AugmentProfile first")
        return row
    row = artifacts_store.find(connection, profile.user_uid, "Dataset", artifact_id)
    if row is None or row.profile_uid != profile.uid:
        raise NotFound(f"dataset {artifact_id}")
    return row


def find_adapter(connection: Connection, user_uid: str, name: str) -> Row[Any]:
    """An adapter of a user, by its resource name.

    Raises:
        NotFound: the user has none of that name.
    """
    _, artifact_id = names.parts("pocketune.dev/Adapter", name)
    row = artifacts_store.find(connection, user_uid, "Adapter", artifact_id)
    if row is None:
        raise NotFound(name)
    return row


def _check_profile(
    connection: Connection, tenant: str, user_id: str, profile: Row[Any], spec: str
) -> None:
    """There is something to learn from, and the teacher may see it."""
    if profile.item_count < MIN_ITEMS:
        name = names.profile(user_id, profile.task)
        raise WrongState(f"{name}: has {profile.item_count} items, needs {MIN_ITEMS} or more")
    user = find_user(connection, tenant, user_id)
    if options.is_third_party(spec) and not user.third_party:
        name = f"{names.user(user_id)}/consent"
        raise WrongState(f"{name}: does not allow a teacher that others operate (third_party)")


def _check_new(connection: Connection, tenant: str, base_id: str) -> None:
    if messages.base_row(connection, tenant, base_id) is not None:
        raise AlreadyExists(f"bases/{base_id}")


def _exists(row: Row[Any]) -> None:
    """What was looked for is there, or the search itself has raised."""


def _check_owner(parent: str, name: str, field: str) -> None:
    if not name.startswith(f"{parent}/"):
        raise InvalidFields([Violation(field, f"is not one of {parent}")])
