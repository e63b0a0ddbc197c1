"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Sorted by bytes on both databases, so that pages are the same.
TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "audit",
        sa.Column("uid", TEXT, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("caller_hash", TEXT, nullable=False),
        sa.Column("subject_hash", TEXT, nullable=False),
        sa.Column("outcome", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index("ix_audit_time", ["create_time"], unique=False)

    op.create_table(
        "bases",
        sa.Column("uid", TEXT, nullable=False),
        sa.Column("tenant", TEXT, nullable=False),
        sa.Column("base_id", TEXT, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("architecture", TEXT, nullable=False),
        sa.Column("files", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("tenant", "base_id"),
    )
    op.create_table(
        "operations",
        sa.Column("uid", TEXT, nullable=False),
        sa.Column("tenant", TEXT, nullable=False),
        sa.Column("user_uid", TEXT, nullable=True),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("target", TEXT, nullable=False),
        sa.Column("conflict_key", TEXT, nullable=True),
        sa.Column("stage", sa.BigInteger(), nullable=False),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("message", TEXT, nullable=False),
        sa.Column("counters", sa.JSON(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("worker", TEXT, nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("sealed_request", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_result", sa.LargeBinary(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=True),
        sa.Column("end_time", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("conflict_key"),
    )
    with op.batch_alter_table("operations", schema=None) as batch_op:
        batch_op.create_index("ix_operations_page", ["tenant", "create_time", "uid"], unique=False)
        batch_op.create_index("ix_operations_user", ["user_uid"], unique=False)

    op.create_table(
        "requests",
        sa.Column("tenant", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("user_uid", TEXT, nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "request_id"),
    )
    with op.batch_alter_table("requests", schema=None) as batch_op:
        batch_op.create_index("ix_requests_time", ["create_time"], unique=False)
        batch_op.create_index("ix_requests_user", ["user_uid"], unique=False)

    op.create_table(
        "users",
        sa.Column("uid", TEXT, nullable=False),
        sa.Column("tenant", TEXT, nullable=False),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("purpose", TEXT, nullable=False),
        sa.Column("retention_days", sa.BigInteger(), nullable=False),
        sa.Column("third_party", sa.Boolean(), nullable=False),
        sa.Column("consent_version", sa.BigInteger(), nullable=False),
        sa.Column("consent_time", sa.BigInteger(), nullable=False),
        sa.Column("erasing", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("tenant", "user_id"),
    )
    op.create_table(
        "workers",
        sa.Column("executor_id", TEXT, nullable=False),
        sa.Column("host", TEXT, nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("executor_id"),
    )
    op.create_table(
        "parity_reports",
        sa.Column("uid", TEXT, nullable=False),
        sa.Column("user_uid", TEXT, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_uid"], ["users.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uid"),
    )
    with op.batch_alter_table("parity_reports", schema=None) as batch_op:
        batch_op.create_index("ix_parity_page", ["user_uid", "create_time", "uid"], unique=False)

    op.create_table(
        "profiles",
        sa.Column("uid", TEXT, nullable=False),
        sa.Column("user_uid", TEXT, nullable=False),
        sa.Column("task", TEXT, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("item_count", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["user_uid"], ["users.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("user_uid", "task"),
    )
    op.create_table(
        "artifacts",
        sa.Column("uid", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("artifact_id", TEXT, nullable=False),
        sa.Column("user_uid", TEXT, nullable=True),
        sa.Column("profile_uid", TEXT, nullable=True),
        sa.Column("base_uid", TEXT, nullable=True),
        sa.Column("recipe", TEXT, nullable=False),
        sa.Column("parent_id", TEXT, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["base_uid"], ["bases.uid"]),
        sa.ForeignKeyConstraint(["profile_uid"], ["profiles.uid"], ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["user_uid"], ["users.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uid"),
        sa.UniqueConstraint("base_uid", "recipe", "kind", "artifact_id", "user_uid"),
        sa.UniqueConstraint("user_uid", "kind", "artifact_id"),
    )
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.create_index(
            "ix_artifacts_page", ["user_uid", "kind", "create_time", "uid"], unique=False
        )

    op.create_table(
        "items",
        sa.Column("profile_uid", TEXT, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("item_key", TEXT, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["profile_uid"], ["profiles.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("profile_uid", "seq"),
        sa.UniqueConstraint("profile_uid", "item_key"),
    )
    op.create_table(
        "uploads",
        sa.Column("profile_uid", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("next_index", sa.BigInteger(), nullable=False),
        sa.Column("added", sa.BigInteger(), nullable=False),
        sa.Column("duplicates", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["profile_uid"], ["profiles.uid"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("profile_uid", "request_id"),
    )


def downgrade() -> None:
    """Take it back."""
    op.drop_table("uploads")
    op.drop_table("items")
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.drop_index("ix_artifacts_page")

    op.drop_table("artifacts")
    op.drop_table("profiles")
    with op.batch_alter_table("parity_reports", schema=None) as batch_op:
        batch_op.drop_index("ix_parity_page")

    op.drop_table("parity_reports")
    op.drop_table("workers")
    op.drop_table("users")
    with op.batch_alter_table("requests", schema=None) as batch_op:
        batch_op.drop_index("ix_requests_user")
        batch_op.drop_index("ix_requests_time")

    op.drop_table("requests")
    with op.batch_alter_table("operations", schema=None) as batch_op:
        batch_op.drop_index("ix_operations_user")
        batch_op.drop_index("ix_operations_page")

    op.drop_table("operations")
    op.drop_table("bases")
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index("ix_audit_time")

    op.drop_table("audit")
