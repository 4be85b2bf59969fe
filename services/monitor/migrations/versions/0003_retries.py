"""Retries, parked tasks, admission by group, and a short queue of small tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns with defaults, so that replicas of the code before go on, and indexes."""
    op.add_column("txn", sa.Column("retry_of", sa.Uuid(as_uuid=False), nullable=True))
    op.add_column("task", sa.Column("files", sa.BigInteger(), server_default="0", nullable=False))
    for name in ("user_name", "group_name"):
        op.add_column("submission", sa.Column(name, sa.Text(), server_default="", nullable=False))
    op.create_index(
        "txn_running_group",
        "txn",
        ["group_name"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(
        "task_parked", "task", ["id"], unique=False, postgresql_where=sa.text("state = 6")
    )
    op.create_index(
        "task_small",
        "task",
        ["kind", "priority", "vt", "id"],
        unique=False,
        postgresql_where=sa.text("state = 1 AND cost <= 1"),
    )


def downgrade() -> None:
    """Take them away."""
    op.drop_index("task_small", table_name="task")
    op.drop_index("task_parked", table_name="task")
    op.drop_index("txn_running_group", table_name="txn")
    for name in ("group_name", "user_name"):
        op.drop_column("submission", name)
    op.drop_column("task", "files")
    op.drop_column("txn", "retry_of")
