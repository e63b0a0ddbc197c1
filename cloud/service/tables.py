"""The tables. Alembic's migrations follow them; a test compares the two.

Nothing that a user wrote stands here readable: columns called `sealed` hold ciphertext under the
user's key, and the keys are elsewhere (`vault.py`). Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import JSON

_OWNER = "users.uid"


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {  # noqa: RUF012 (declared so by SQLAlchemy)
        # Sorted by bytes on both databases, so that pages are the same.
        str: String().with_variant(String(collation="C"), "postgresql"),
        int: BigInteger(),
        bytes: LargeBinary(),
        dict[str, float]: JSON(),
    }


class User(Table):
    """A person; their consent stands in the same row."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("tenant", "user_id"),)
    uid: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_id: Mapped[str]
    create_time: Mapped[int]
    purpose: Mapped[str]
    retention_days: Mapped[int]
    third_party: Mapped[bool]
    consent_version: Mapped[int]
    consent_time: Mapped[int]
    erasing: Mapped[bool] = mapped_column(default=False)


class Profile(Table):
    """sealed: the `Profile` message, less what the other columns say."""

    __tablename__ = "profiles"
    __table_args__ = (UniqueConstraint("user_uid", "task"),)
    uid: Mapped[str] = mapped_column(primary_key=True)
    user_uid: Mapped[str] = mapped_column(ForeignKey(_OWNER, ondelete="CASCADE"))
    task: Mapped[str]
    sealed: Mapped[bytes]
    item_count: Mapped[int]
    create_time: Mapped[int]
    update_time: Mapped[int]


class Item(Table):
    """item_key: keyed digest of the item's id, so that a repeated id is noticed."""

    __tablename__ = "items"
    __table_args__ = (UniqueConstraint("profile_uid", "item_key"),)
    profile_uid: Mapped[str] = mapped_column(
        ForeignKey("profiles.uid", ondelete="CASCADE"), primary_key=True
    )
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    item_key: Mapped[str]
    sealed: Mapped[bytes]
    create_time: Mapped[int]


class Upload(Table):
    """How far one AppendItems upload has come."""

    __tablename__ = "uploads"
    profile_uid: Mapped[str] = mapped_column(
        ForeignKey("profiles.uid", ondelete="CASCADE"), primary_key=True
    )
    request_id: Mapped[str] = mapped_column(primary_key=True)
    next_index: Mapped[int]
    added: Mapped[int]
    duplicates: Mapped[int]
    update_time: Mapped[int]


class Base(Table):
    """A base model. files: list of {path, size, sha256, address}, in the shared space."""

    __tablename__ = "bases"
    __table_args__ = (UniqueConstraint("tenant", "base_id"),)
    uid: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    base_id: Mapped[str]
    source: Mapped[str]
    digest: Mapped[str]
    architecture: Mapped[str]
    files: Mapped[bytes]
    create_time: Mapped[int]


class Artifact(Table):
    """A stored artifact: Dataset, Adapter, AdapterBundle of a user; BaseBundle of nobody.

    sealed: JSON of manifest facts and `files` (path, size, sha256, address), under the user's key;
    plain for a BaseBundle.
    """

    __tablename__ = "artifacts"
    __table_args__ = (
        UniqueConstraint("user_uid", "kind", "artifact_id"),
        UniqueConstraint("base_uid", "recipe", "kind", "artifact_id", "user_uid"),
        Index("ix_artifacts_page", "user_uid", "kind", "create_time", "uid"),
        Index("ix_artifacts_profile", "profile_uid"),
    )
    uid: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    artifact_id: Mapped[str]
    user_uid: Mapped[str | None] = mapped_column(ForeignKey(_OWNER, ondelete="CASCADE"))
    profile_uid: Mapped[str | None] = mapped_column(ForeignKey("profiles.uid", ondelete="SET NULL"))
    base_uid: Mapped[str | None] = mapped_column(ForeignKey("bases.uid"))
    recipe: Mapped[str]
    parent_id: Mapped[str]
    sealed: Mapped[bytes]
    size_bytes: Mapped[int]
    create_time: Mapped[int]


class ParityReport(Table):
    """sealed: the `ParityReport` message."""

    __tablename__ = "parity_reports"
    __table_args__ = (Index("ix_parity_page", "user_uid", "create_time", "uid"),)
    uid: Mapped[str] = mapped_column(primary_key=True)
    user_uid: Mapped[str] = mapped_column(ForeignKey(_OWNER, ondelete="CASCADE"))
    sealed: Mapped[bytes]
    create_time: Mapped[int]


class Operation(Table):
    """A long-running operation.

    conflict_key: what it works on, while it is not done; unique, so that a second one is refused.
    sealed_request, sealed_result: messages under the user's key. error: a google.rpc.Status.
    base_uid: the base it trains for; those that wait for the same one could be trained together.
    """

    __tablename__ = "operations"
    __table_args__ = (
        Index("ix_operations_page", "tenant", "create_time", "uid"),
        Index("ix_operations_user", "user_uid"),
        Index("ix_operations_base", "base_uid", "end_time"),
    )
    uid: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    user_uid: Mapped[str | None]
    method: Mapped[str]
    target: Mapped[str]
    conflict_key: Mapped[str | None] = mapped_column(unique=True)
    stage: Mapped[int]
    progress: Mapped[float]
    message: Mapped[str]
    counters: Mapped[dict[str, float]]
    attempt: Mapped[int]
    worker: Mapped[str]
    cancel_requested: Mapped[bool]
    sealed_request: Mapped[bytes]
    sealed_result: Mapped[bytes | None]
    error: Mapped[bytes | None]
    create_time: Mapped[int]
    start_time: Mapped[int | None]
    end_time: Mapped[int | None]
    base_uid: Mapped[str | None]


class Request(Table):
    """The answer to a mutating call, for when the same `request_id` comes again."""

    __tablename__ = "requests"
    __table_args__ = (
        Index("ix_requests_user", "user_uid"),
        Index("ix_requests_time", "create_time"),
    )
    tenant: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str]
    user_uid: Mapped[str | None]
    sealed: Mapped[bytes]
    create_time: Mapped[int]


class Worker(Table):
    """A living worker. beat: grows every few seconds, compared by each observer's own clock."""

    __tablename__ = "workers"
    executor_id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    beat: Mapped[int]
    start_time: Mapped[int]


class Hold(Table):
    """Work that is done once for all, such as lowering a base: the operation that is at it now.

    It counts while that operation is at this attempt, and its worker lives (`holds.py`).
    """

    __tablename__ = "holds"
    key: Mapped[str] = mapped_column(primary_key=True)
    operation_uid: Mapped[str]
    attempt: Mapped[int]


class Audit(Table):
    """What was done, by whom and to whom, as salted hashes only."""

    __tablename__ = "audit"
    __table_args__ = (Index("ix_audit_time", "create_time"),)
    uid: Mapped[str] = mapped_column(primary_key=True)
    create_time: Mapped[int]
    method: Mapped[str]
    caller_hash: Mapped[str]
    subject_hash: Mapped[str]
    outcome: Mapped[str]
