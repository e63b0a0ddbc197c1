"""The items of a profile: taken in batch by batch, sealed one by one, given back in order.

An upload is a sequence of items named by its `request_id`. `Upload.next_index` is written in the
transaction that writes the items, so whatever was acknowledged is stored, and whatever was not can
be sent again without being stored twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Any

from google.protobuf.message import Message
from sqlalchemy import Connection, Row, insert, select, update

from cloud.profiles import ItemError, check_label, text_field
from cloud.service import names, pages, profiles
from cloud.service.audit import AuditLog
from cloud.service.auth import Principal, principal
from cloud.service.errors import InvalidFields, NotFound, Violation, WrongPosition
from cloud.service.state import Database, new_uid, now
from cloud.service.tables import Item, Profile, Upload
from cloud.service.vault import Space, Vault
from cloud.tasks import Task
from protos.artifacts import canonical_json
from protos.v1 import profiles_pb2

PAGE_BYTES = 2 * 1024 * 1024
_PROFILE = "pocketune.dev/Profile"


async def append(
    database: Database,
    vault: Vault,
    audit: AuditLog,
    stream: AsyncIterator[profiles_pb2.AppendItemsRequest],
) -> profiles_pb2.AppendItemsResponse:
    """Store a stream of items; each message in a transaction of its own."""
    caller = principal.get()
    tenant = caller.tenant
    head: profiles_pb2.AppendItemsRequest | None = None
    async for batch in stream:
        head = head or _head(batch)
        await database.write(partial(_append, vault, audit, caller, head, batch))
    if head is None:
        raise InvalidFields([Violation("parent", "is required in the first message")])
    user_id, task = names.parts(_PROFILE, head.parent)
    upload = head.request_id

    def result(connection: Connection) -> tuple[Row[Any], profiles_pb2.Upload]:
        row = profiles.find_profile(connection, tenant, user_id, task)
        return row, _upload(connection, row.uid, upload)

    row, stands = await database.read(result)
    space = await vault.open(tenant, row.user_uid)
    profile = profiles.message_of(row, user_id, space)
    return profiles_pb2.AppendItemsResponse(upload=stands, profile=profile)


async def get_upload(
    database: Database, request: profiles_pb2.GetUploadRequest
) -> profiles_pb2.Upload:
    """How far an upload has come."""
    tenant = principal.get().tenant
    path = names.parts(_PROFILE, request.parent)

    def query(connection: Connection) -> profiles_pb2.Upload:
        row = profiles.find_profile(connection, tenant, *path)
        return _upload(connection, row.uid, request.request_id)

    return await database.read(query)


async def list_items(
    database: Database, vault: Vault, request: profiles_pb2.ListItemsRequest
) -> profiles_pb2.ListItemsResponse:
    """A page of items, cut short where it would grow beyond PAGE_BYTES."""
    tenant = principal.get().tenant
    path = names.parts(_PROFILE, request.parent)
    size = pages.size(request.page_size)
    collection = f"{request.parent}/items"
    last = pages.after(request.page_token, collection, int)
    start = last[0] if last else 0

    def query(connection: Connection) -> tuple[Row[Any], list[Row[Any]]]:
        profile = profiles.find_profile(connection, tenant, *path)
        wanted = (
            select(Item.seq, Item.sealed)
            .where(Item.profile_uid == profile.uid, Item.seq > start)
            .order_by(Item.seq)
            .limit(size + 1)
        )
        found = connection.execute(wanted, execution_options={"stream_results": True})
        return profile, _fitting(found)

    profile, rows = await database.read(query)
    space = await vault.open(tenant, profile.user_uid)
    full = len(rows) > size or sum(len(row.sealed) for row in rows) > PAGE_BYTES
    shown = rows[:-1] if full and len(rows) > 1 else rows
    more = pages.token(collection, [shown[-1].seq]) if len(shown) < len(rows) else ""
    return profiles_pb2.ListItemsResponse(
        items=[open_item(space, profile.uid, row) for row in shown], next_page_token=more
    )


def open_item(space: Space, profile_uid: str, row: Row[Any]) -> profiles_pb2.Item:
    """The item in a row with `seq` and `sealed`."""
    plain = space.unseal(row.sealed, _context(profile_uid, row.seq))
    return profiles_pb2.Item.FromString(plain)


def _fitting(found: Iterable[Any]) -> list[Row[Any]]:
    """Rows up to the first that PAGE_BYTES have no room for, and that one; never all at once."""
    rows: list[Row[Any]] = []
    total = 0
    for row in found:
        rows.append(row)
        total += len(row.sealed)
        if total > PAGE_BYTES and len(rows) > 1:
            break
    return rows


def _head(first: profiles_pb2.AppendItemsRequest) -> profiles_pb2.AppendItemsRequest:
    """What the first message says of the whole upload."""
    if not first.parent:
        raise InvalidFields([Violation("parent", "is required in the first message")])
    return profiles_pb2.AppendItemsRequest(
        parent=first.parent, request_id=first.request_id or new_uid()
    )


def _append(
    vault: Vault,
    audit: AuditLog,
    caller: Principal,
    head: profiles_pb2.AppendItemsRequest,
    batch: profiles_pb2.AppendItemsRequest,
    connection: Connection,
) -> None:
    tenant = caller.tenant
    profile = profiles.find_profile(connection, tenant, *names.parts(_PROFILE, head.parent))
    if _store(connection, profile, vault.space(tenant, profile.user_uid), head, batch):
        audit.record(connection, caller, "AppendItems", head.parent)


def _store(
    connection: Connection,
    profile: Row[Any],
    space: Space,
    head: profiles_pb2.AppendItemsRequest,
    batch: profiles_pb2.AppendItemsRequest,
) -> int:
    """Store the part of a batch that is new; returns how many items the profile has more."""
    for name in ("parent", "request_id"):
        if getattr(batch, name) not in ("", getattr(head, name)):
            raise InvalidFields([Violation(name, "differs from the first message's")])
    upload = _lock(connection, profile.uid, head.request_id)
    if batch.first_index > upload.next_index:
        raise WrongPosition(
            f"first_index is {batch.first_index}, but the upload goes on at {upload.next_index}"
        )
    skipped = upload.next_index - batch.first_index
    task = profiles.task_of(profile.task, profiles.message_of(profile, "-", space))
    fresh = _clean(batch.items[skipped:], task, skipped)
    added = _insert(connection, profile.uid, space, fresh)
    time = now()
    same = (Upload.profile_uid == profile.uid) & (Upload.request_id == head.request_id)
    connection.execute(
        update(Upload)
        .where(same)
        .values(
            next_index=upload.next_index + len(fresh),
            added=upload.added + added,
            duplicates=upload.duplicates + len(fresh) - added,
            update_time=time,
        )
    )
    connection.execute(
        update(Profile)
        .where(Profile.uid == profile.uid)
        .values(item_count=Profile.item_count + added, update_time=time)
    )
    return added


def _lock(connection: Connection, profile_uid: str, request_id: str) -> Row[Any]:
    """The upload's row, made if need be, locked until the transaction ends.

    The profile's row is locked with it: two uploads to one profile number their items in turn.
    """
    connection.execute(select(Profile.uid).where(Profile.uid == profile_uid).with_for_update())
    same = (Upload.profile_uid == profile_uid) & (Upload.request_id == request_id)
    wanted = select(*Upload.__table__.columns).where(same)
    row = connection.execute(wanted).first()
    if row is None:
        connection.execute(
            insert(Upload).values(
                profile_uid=profile_uid,
                request_id=request_id,
                next_index=0,
                added=0,
                duplicates=0,
                update_time=now(),
            )
        )
        row = connection.execute(wanted).one()
    return row


def _clean(given: Sequence[profiles_pb2.Item], task: Task, skipped: int) -> list[profiles_pb2.Item]:
    """Items as they are kept: trimmed, with an id, each an item of the task.

    Raises:
        InvalidFields: names every item that is wrong.
    """
    kept: list[profiles_pb2.Item] = []
    violations: list[Violation] = []
    for index, item in enumerate(given, skipped):
        try:
            row = {"input": item.input, "output": item.output}
            clean = {name: text_field(row, name) for name in row}
            check_label(task, clean["output"], "output")
        except ItemError as error:
            violations.append(Violation(f"items[{index}].{error.field}", error.problem))
            continue
        kept.append(profiles_pb2.Item(item_id=item.item_id, date=item.date, **clean))
    if violations:
        raise InvalidFields(violations)
    return kept


def _insert(
    connection: Connection, profile_uid: str, space: Space, given: Sequence[profiles_pb2.Item]
) -> int:
    """Insert those items whose id the profile does not hold; returns how many."""
    keyed: dict[str, profiles_pb2.Item] = {}
    for item in given:
        content = item.item_id or canonical_json([item.input, item.output, item.date]).decode()
        key = space.digest(f"{profile_uid}/{bool(item.item_id)}/{content}".encode())
        item.item_id = item.item_id or key[:16]
        keyed.setdefault(key, item)
    mine = Item.profile_uid == profile_uid
    known = select(Item.item_key).where(mine, Item.item_key.in_(list(keyed)))
    held = set(connection.execute(known).scalars())
    last = select(Item.seq).where(mine).order_by(Item.seq.desc()).limit(1)
    seq = connection.execute(last).scalar() or 0
    time = now()
    rows: list[dict[str, Any]] = []
    for key, item in keyed.items():
        if key not in held:
            seq += 1
            rows.append({
                "profile_uid": profile_uid, "seq": seq, "item_key": key, "create_time": time,
                "sealed": space.seal(_bytes(item), _context(profile_uid, seq)),
            })  # fmt: skip
    if rows:
        connection.execute(insert(Item), rows)
    return len(rows)


def _upload(connection: Connection, profile_uid: str, request_id: str) -> profiles_pb2.Upload:
    same = (Upload.profile_uid == profile_uid) & (Upload.request_id == request_id)
    row = connection.execute(select(*Upload.__table__.columns).where(same)).first()
    if row is None:
        raise NotFound(f"upload {request_id}")
    return profiles_pb2.Upload(
        next_index=row.next_index, added_count=row.added, duplicate_count=row.duplicates
    )


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _context(profile_uid: str, seq: int) -> str:
    return f"items/{profile_uid}/{seq}"
