"""Faults tell when and how they were repaired. Code that does not know the columns leaves them."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, empty for every fault, and the index of open faults."""
    op.execute("ALTER TABLE fault ADD repaired_at TIMESTAMP WITH TIME ZONE, ADD repair TEXT")
    op.execute("CREATE INDEX fault_open ON fault (file_id) WHERE repaired_at IS NULL")


def downgrade() -> None:
    """Forget about repairs."""
    op.execute("DROP INDEX fault_open")
    op.execute("ALTER TABLE fault DROP repaired_at, DROP repair")
