"""Retries, parked tasks, admission by group, and ways to find tasks in a long queue."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_INDEXES = (
    ("txn_running_group", "txn", ["group_name"], "finished_at IS NULL"),
    ("task_parked", "task", ["id"], "state = 6"),
    ("task_small", "task", ["kind", "priority", "vt", "id"], "state = 1 AND cost <= 1"),
    ("task_lane", "task", ["lane", "cost"], "state = 1"),
)


def upgrade() -> None:
    """Add columns with defaults, so that replicas of the code before go on, and indexes.

    Indexes are built beside running services, and first: what a crash leaves then is indexes that
    are not valid, which a repeat drops and builds again.
    """
    with op.get_context().autocommit_block():
        for name, table, columns, condition in _INDEXES:
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                columns,
                postgresql_where=sa.text(condition),
                postgresql_concurrently=True,
            )
    op.add_column("txn", sa.Column("retry_of", sa.Uuid(as_uuid=False), nullable=True))
    op.add_column("task", sa.Column("files", sa.BigInteger(), server_default="0", nullable=False))
    for name in ("user_name", "group_name"):
        op.add_column("submission", sa.Column(name, sa.Text(), server_default="", nullable=False))


def downgrade() -> None:
    """Take them away."""
    for name in ("group_name", "user_name"):
        op.drop_column("submission", name)
    op.drop_column("task", "files")
    op.drop_column("txn", "retry_of")
    for name, table, *_ in reversed(_INDEXES):
        op.drop_index(name, table_name=table)
