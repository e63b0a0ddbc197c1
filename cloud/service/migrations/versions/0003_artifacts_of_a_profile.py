"""Artifacts are found by their profile, when it is deleted."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the change."""
    op.create_index("ix_artifacts_profile", "artifacts", ["profile_uid"], unique=False)


def downgrade() -> None:
    """Take it back."""
    op.drop_index("ix_artifacts_profile", "artifacts")
