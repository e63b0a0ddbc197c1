"""The main job by remote: what is missing is created, the items go up, the service does the rest.

In: a profile as `cloud.profiles` reads it. Out: the service's answer. Doing it again changes
nothing that is there already: ids of uploads follow from their content.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cloud.client.errors import AlreadyExists, Conflict, NotFound
from cloud.client.operation import Operation
from cloud.client.sync import Client
from cloud.profiles import Profile
from cloud.tasks import TASKS
from protos.progress import shown
from protos.v1 import adapters_pb2, profiles_pb2, users_pb2

_KINDS = {
    "generation": profiles_pb2.TASK_KIND_GENERATION,
    "classification": profiles_pb2.TASK_KIND_CLASSIFICATION,
    "rating": profiles_pb2.TASK_KIND_RATING,
}
_METHOD = "PersonalizeProfile"
_DAY = len("2026-01-31")


@dataclass(frozen=True)
class Wishes:
    """What to make. augment, train: fields of AugmentOptions and TrainOptions that are set."""

    base: str
    base_source: str
    recipe: str
    augment: dict[str, Any] = field(default_factory=dict[str, Any])
    train: dict[str, Any] = field(default_factory=dict[str, Any])


def personalize(
    client: Client, profile: Profile, wishes: Wishes
) -> profiles_pb2.PersonalizeProfileResponse:
    """From a user's items to a bundle on the server.

    Raises:
        CallError: the service refused or failed.
    """
    base = ensure_base(client, wishes)
    name = ensure_profile(client, profile)
    send_items(client, name, profile)
    request = profiles_pb2.PersonalizeProfileRequest(
        name=name,
        base=base,
        recipe=wishes.recipe,
        augment=profiles_pb2.AugmentOptions(**wishes.augment),
        train=adapters_pb2.TrainOptions(**wishes.train),
    )
    with shown("personalize") as progress:
        return client.wait(_begin(client, request), progress)


def _begin(
    client: Client, request: profiles_pb2.PersonalizeProfileRequest
) -> Operation[profiles_pb2.PersonalizeProfileResponse]:
    """Start it, or find the one that is at work on the same profile already."""
    answer = profiles_pb2.PersonalizeProfileResponse
    try:
        return client.personalize(request)
    except Conflict:
        for raw in client.list_operations(only_open=True):
            found = Operation(raw, answer)
            if (found.metadata.method, found.metadata.target) == (_METHOD, request.name):
                return found
        raise


def ensure_base(client: Client, wishes: Wishes) -> str:
    """The name of the base, made from its source if there is none of that id."""
    name = f"bases/{wishes.base}"
    try:
        return client.get_base(name).name
    except NotFound:
        with shown("base") as progress:
            return client.wait(client.create_base(wishes.base, wishes.base_source), progress).name


def ensure_profile(client: Client, profile: Profile) -> str:
    """The name of the profile on the server; user and profile are made where they are missing."""
    consent = users_pb2.Consent(
        purpose=profile.consent.purpose,
        retention_days=profile.consent.retention_days,
        third_party=profile.consent.third_party,
    )
    user, task = f"users/{profile.user}", profile.task
    with contextlib.suppress(AlreadyExists):
        client.create_user(profile.user, consent)
    own = profiles_pb2.Profile(language=profile.language)
    if task.name not in TASKS:
        own.kind, own.prompt = _KINDS[task.kind], task.prompt
        own.labels.extend(task.labels)
    try:
        return client.create_profile(user, task.name, own).name
    except AlreadyExists:
        return f"{user}/profiles/{task.name}"


def send_items(client: Client, name: str, profile: Profile) -> profiles_pb2.AppendItemsResponse:
    """Upload the items; the same ones a second time go on with the first upload.

    Their ids are left to the server, which makes them from the content: line numbers of two files
    would be taken for the same items.
    """
    items = [
        profiles_pb2.Item(input=item.input, output=item.output, date=item.date[:_DAY])
        for item in profile.items
    ]
    with shown("upload") as progress:
        return client.upload(name, items, _upload_id(name, items), progress)


def _upload_id(name: str, items: Sequence[profiles_pb2.Item]) -> str:
    digest = hashlib.sha256(name.encode())
    for item in items:
        digest.update(hashlib.sha256(item.SerializeToString(deterministic=True)).digest())
    return str(uuid.UUID(bytes=digest.digest()[:16], version=4))
