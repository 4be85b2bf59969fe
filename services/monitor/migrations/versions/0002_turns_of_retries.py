"""Turns of their own for tasks that come back."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the place where a lane stands with what comes back; replicas without it ignore it."""
    op.add_column(
        "lane", sa.Column("again", sa.Double(), server_default=sa.text("0"), nullable=False)
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_column("lane", "again")
