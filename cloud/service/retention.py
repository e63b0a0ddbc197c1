"""Retention: what is older than its user's consent allows is deleted, wherever it is.

In: the time. Out: items, datasets, adapters, bundles and parity reports that were stored more than
`retention_days` ago are gone. Each counts from when it was stored itself: an adapter that was
trained on the last day of an item may stay as long again. An operation that was reading what
expires fails; keeping it for that would be keeping it too long.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from cloud.service import artifacts_store
from cloud.service.parts import Parts
from cloud.service.state import now
from cloud.service.tables import Artifact, Item, ParityReport, Profile, User

DAY = 86_400_000_000
"""Microseconds."""


def enforce(parts: Parts) -> int:
    """Delete what has expired; returns how many rows."""
    moment = now()
    count = _items(parts, moment) + _artifacts(parts, moment) + _reports(parts, moment)
    if count:
        parts.database.erase_traces()
    return count


def _expired(column: Any, moment: int) -> Any:
    """Whether something stored at `column` is too old for the consent of its user."""
    return column < moment - User.retention_days * DAY


def _items(parts: Parts, moment: int) -> int:
    # The first item is the oldest: one row a profile is looked at, not all of them.
    mine = select(Item.create_time).where(Item.profile_uid == Profile.uid)
    oldest = mine.order_by(Item.seq).limit(1).scalar_subquery()
    with parts.database.transaction(write=False) as connection:
        found: Any = connection.execute(
            select(Profile.uid, User.retention_days)
            .join(User, User.uid == Profile.user_uid)
            .where(_expired(oldest, moment))
        ).all()
    count = 0
    for profile in found:
        with parts.database.transaction() as connection:
            count += _items_of(connection, profile, moment)
    return count


def _items_of(connection: Connection, profile: Row[Any], moment: int) -> int:
    mine = Item.profile_uid == profile.uid
    # Locked as in `items.py`, so that an upload does not count at the same time.
    connection.execute(select(Profile.uid).where(Profile.uid == profile.uid).with_for_update())
    old = Item.create_time < moment - profile.retention_days * DAY
    removed = connection.execute(delete(Item).where(mine, old)).rowcount
    left = select(func.count()).select_from(Item).where(mine).scalar_subquery()
    connection.execute(
        update(Profile).where(Profile.uid == profile.uid).values(item_count=left, update_time=now())
    )
    return removed


def _artifacts(parts: Parts, moment: int) -> int:
    with parts.database.transaction(write=False) as connection:
        users: Any = connection.execute(
            select(User.uid, User.tenant, User.retention_days)
            .join(Artifact, Artifact.user_uid == User.uid)
            .where(_expired(Artifact.create_time, moment), ~User.erasing)
            .distinct()
        ).all()
    return sum(_artifacts_of(parts, user, moment) for user in users)


def _artifacts_of(parts: Parts, user: Row[Any], moment: int) -> int:
    """Delete a user's expired artifacts, and the blobs that no other artifact of theirs needs."""
    limit = moment - user.retention_days * DAY
    space = parts.vault.space(user.tenant, user.uid)
    mine = Artifact.user_uid == user.uid
    with parts.database.transaction() as connection:
        rows: Any = connection.execute(
            select(Artifact.uid, Artifact.sealed, Artifact.create_time).where(mine)
        ).all()
        connection.execute(delete(Artifact).where(mine, Artifact.create_time < limit))
    addresses: dict[bool, set[str]] = {True: set(), False: set()}
    for row in rows:
        found = {file.address for file in artifacts_store.opened(space, row).files}
        addresses[row.create_time < limit] |= found
    for address in addresses[True] - addresses[False]:
        parts.vault.blobs.delete(f"{space.prefix}/{address}")
    return sum(row.create_time < limit for row in rows)


def _reports(parts: Parts, moment: int) -> int:
    old = (
        select(ParityReport.uid)
        .join(User, User.uid == ParityReport.user_uid)
        .where(_expired(ParityReport.create_time, moment))
    )
    with parts.database.transaction() as connection:
        return connection.execute(delete(ParityReport).where(ParityReport.uid.in_(old))).rowcount
