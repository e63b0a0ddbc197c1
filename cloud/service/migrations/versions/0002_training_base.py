"""Which base an operation trains for, and who does what is to be done only once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Sorted by bytes on both databases, so that pages are the same.
TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the change."""
    op.create_table(
        "holds",
        sa.Column("key", TEXT, nullable=False),
        sa.Column("operation_uid", TEXT, nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    with op.batch_alter_table("operations", schema=None) as batch_op:
        batch_op.add_column(sa.Column("base_uid", TEXT, nullable=True))
        batch_op.create_index("ix_operations_base", ["base_uid", "end_time"], unique=False)


def downgrade() -> None:
    """Undo it."""
    with op.batch_alter_table("operations", schema=None) as batch_op:
        batch_op.drop_index("ix_operations_base")
        batch_op.drop_column("base_uid")
    op.drop_table("holds")
