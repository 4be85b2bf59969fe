"""The ledger: transactions, submissions, tasks, lanes, failures, workers, schedules."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "failure",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("txn", sa.BigInteger(), nullable=True),
        sa.Column("task", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("counted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("failure_pkey")),
        sa.UniqueConstraint(
            "task", "token", "position", name=op.f("failure_task_token_position_key")
        ),
    )
    op.create_index(
        "failure_counted",
        "failure",
        ["txn", "id"],
        unique=False,
        postgresql_where=sa.text("counted"),
    )
    op.create_table(
        "lane",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("vt", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("lane_pkey")),
        sa.UniqueConstraint(
            "kind", "user_name", "group_name", name=op.f("lane_kind_user_name_group_name_key")
        ),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "path_chunk",
        sa.Column("transaction_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=False),
        sa.Column("paths", sa.ARRAY(sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("transaction_id", "chunk", name=op.f("path_chunk_pkey")),
    )
    op.create_table(
        "schedule",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("every_seconds", sa.Double(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("task", sa.BigInteger(), nullable=True),
        sa.Column("again", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("schedule_pkey")),
    )
    op.create_table(
        "submission",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("next", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("submission_pkey")),
    )
    op.create_index(op.f("submission_updated_at"), "submission", ["updated_at"], unique=False)
    op.create_table(
        "task",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("vt", sa.Double(), nullable=False),
        sa.Column("txn", sa.BigInteger(), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lane", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Integer(), nullable=True),
        sa.Column("worker", sa.Integer(), nullable=True),
        sa.Column("token", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ended_token", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ended", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lost", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("cost", sa.REAL(), nullable=False),
        sa.Column("chunk", sa.Integer(), nullable=True),
        sa.Column("files_done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("files_failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("live_files", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("live_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("live_note", sa.Text(), server_default="", nullable=False),
        sa.Column("note", sa.Text(), server_default="", nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("schedule", sa.Text(), nullable=True),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("task_pkey")),
        postgresql_with={
            "fillfactor": "80",
            "autovacuum_vacuum_scale_factor": "0",
            "autovacuum_vacuum_threshold": "20000",
            "autovacuum_vacuum_cost_delay": "0",
        },
    )
    op.create_index(
        "task_blocked", "task", ["txn"], unique=False, postgresql_where=sa.text("state = 4")
    )
    op.create_index(
        "task_delayed", "task", ["not_before"], unique=False, postgresql_where=sa.text("state = 3")
    )
    op.create_index(
        "task_ended",
        "task",
        ["ended_at"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    op.create_index(
        "task_held",
        "task",
        ["holder"],
        unique=False,
        postgresql_where=sa.text("holder IS NOT NULL"),
    )
    op.create_index(
        "task_leased_key",
        "task",
        ["key"],
        unique=True,
        postgresql_where=sa.text("key IS NOT NULL AND state = 2"),
    )
    op.create_index("task_of_txn", "task", ["txn", "id"], unique=False)
    op.create_index(
        "task_open_key",
        "task",
        ["key"],
        unique=False,
        postgresql_where=sa.text("key IS NOT NULL AND ended_at IS NULL"),
    )
    op.create_index(
        "task_ready",
        "task",
        ["kind", "priority", "vt", "id"],
        unique=False,
        postgresql_where=sa.text("state = 1"),
    )
    op.create_index(
        "task_running",
        "task",
        ["txn"],
        unique=False,
        postgresql_where=sa.text("holder IS NOT NULL"),
    )
    op.create_index(
        "task_waiting", "task", ["txn"], unique=False, postgresql_where=sa.text("state = 3")
    )
    op.create_table(
        "txn",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("user_name", sa.Text(), nullable=False),
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("action", sa.SmallInteger(), nullable=False),
        sa.Column("job_label", sa.Text(), nullable=False),
        sa.Column("holding_id", sa.BigInteger(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("begun", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("open_by_kind", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("blocked", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tasks_failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("files_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("files_done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("files_failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("warnings", sa.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("txn_pkey")),
        sa.UniqueConstraint("id", name=op.f("txn_id_key")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "txn_cancelling",
        "txn",
        ["cancelled_at"],
        unique=False,
        postgresql_where=sa.text("cancelled_at IS NOT NULL AND finished_at IS NULL"),
    )
    op.create_index(op.f("txn_group_name_seq"), "txn", ["group_name", "seq"], unique=False)
    op.create_index(
        "txn_holding_id",
        "txn",
        ["holding_id", "seq"],
        unique=False,
        postgresql_where=sa.text("holding_id <> 0"),
    )
    op.create_index(
        "txn_job_label",
        "txn",
        ["job_label", "seq"],
        unique=False,
        postgresql_where=sa.text("job_label <> ''"),
    )
    op.create_index(
        "txn_label", "txn", ["label", "seq"], unique=False, postgresql_where=sa.text("label <> ''")
    )
    op.create_index(
        "txn_running",
        "txn",
        ["user_name"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index(op.f("txn_user_name_seq"), "txn", ["user_name", "seq"], unique=False)
    op.create_table(
        "worker",
        sa.Column("id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("trouble", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("worker_pkey")),
        sa.UniqueConstraint("name", name=op.f("worker_name_key")),
        postgresql_with={"fillfactor": "50"},
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("worker")
    op.drop_index(op.f("txn_user_name_seq"), table_name="txn")
    op.drop_index("txn_running", table_name="txn", postgresql_where=sa.text("finished_at IS NULL"))
    op.drop_index("txn_label", table_name="txn", postgresql_where=sa.text("label <> ''"))
    op.drop_index("txn_job_label", table_name="txn", postgresql_where=sa.text("job_label <> ''"))
    op.drop_index("txn_holding_id", table_name="txn", postgresql_where=sa.text("holding_id <> 0"))
    op.drop_index(op.f("txn_group_name_seq"), table_name="txn")
    op.drop_index(
        "txn_cancelling",
        table_name="txn",
        postgresql_where=sa.text("cancelled_at IS NOT NULL AND finished_at IS NULL"),
    )
    op.drop_table("txn")
    op.drop_index("task_waiting", table_name="task", postgresql_where=sa.text("state = 3"))
    op.drop_index("task_running", table_name="task", postgresql_where=sa.text("holder IS NOT NULL"))
    op.drop_index("task_ready", table_name="task", postgresql_where=sa.text("state = 1"))
    op.drop_index(
        "task_open_key",
        table_name="task",
        postgresql_where=sa.text("key IS NOT NULL AND ended_at IS NULL"),
    )
    op.drop_index("task_of_txn", table_name="task")
    op.drop_index(
        "task_leased_key",
        table_name="task",
        postgresql_where=sa.text("key IS NOT NULL AND state = 2"),
    )
    op.drop_index("task_held", table_name="task", postgresql_where=sa.text("holder IS NOT NULL"))
    op.drop_index("task_ended", table_name="task", postgresql_where=sa.text("ended_at IS NOT NULL"))
    op.drop_index("task_delayed", table_name="task", postgresql_where=sa.text("state = 3"))
    op.drop_index("task_blocked", table_name="task", postgresql_where=sa.text("state = 4"))
    op.drop_table("task")
    op.drop_index(op.f("submission_updated_at"), table_name="submission")
    op.drop_table("submission")
    op.drop_table("schedule")
    op.drop_table("path_chunk")
    op.drop_table("lane")
    op.drop_index("failure_counted", table_name="failure", postgresql_where=sa.text("counted"))
    op.drop_table("failure")
