"""The ledger's tables. A task row is the queue: it is leased, put off and ended where it stands.

Numbers of states and kinds are those of `nearline.type.v1.Task`; partial indexes spell them out:
1 READY, 2 LEASED, 3 DELAYED, 4 BLOCKED. No foreign keys on the bulk tables: rows are written by
statements that have just locked what they refer to.
"""

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "pk": "%(table_name)s_pkey",
    }
)

_TIME = DateTime(timezone=True)
_ID = Uuid(as_uuid=False)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default="0")


def _now(name: str) -> Column[object]:
    return Column(name, _TIME, nullable=False, server_default=func.now())


# Accepted requests. `seq` is the order of acceptance and what the other tables refer to.
txn = Table(
    "txn",
    metadata,
    Column("seq", BigInteger, Identity(), primary_key=True),
    Column("id", _ID, nullable=False, unique=True),
    Column("user_name", Text, nullable=False),
    Column("group_name", Text, nullable=False),
    Column("action", SmallInteger, nullable=False),
    Column("job_label", Text, nullable=False),
    Column("holding_id", BigInteger, nullable=False),
    Column("label", Text, nullable=False),
    # The serialized TransactionSpec, as workers get it.
    Column("spec", LargeBinary, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("begun", Boolean, nullable=False, server_default=text("false")),
    # Tasks that are READY, LEASED or DELAYED, at the position of their kind.
    Column("open_by_kind", ARRAY(Integer), nullable=False),
    Column("blocked", Integer, nullable=False, server_default="0"),
    Column("tasks_failed", Integer, nullable=False, server_default="0"),
    _count("files_total"),
    _count("files_done"),
    _count("files_failed"),
    _count("bytes_total"),
    _count("bytes_done"),
    Column("warnings", ARRAY(Text), nullable=False, server_default=text("'{}'")),
    _now("created_at"),
    _now("updated_at"),
    Column("cancelled_at", _TIME),
    Column("finished_at", _TIME),
    # Id of the transaction whose failed files it runs again.
    Column("retry_of", _ID),
    Index(None, "user_name", "seq"),
    Index(None, "group_name", "seq"),
    Index("txn_job_label", "job_label", "seq", postgresql_where=text("job_label <> ''")),
    Index("txn_holding_id", "holding_id", "seq", postgresql_where=text("holding_id <> 0")),
    Index("txn_label", "label", "seq", postgresql_where=text("label <> ''")),
    Index("txn_running", "user_name", postgresql_where=text("finished_at IS NULL")),
    Index("txn_running_group", "group_name", postgresql_where=text("finished_at IS NULL")),
    Index(
        "txn_cancelling",
        "cancelled_at",
        postgresql_where=text("cancelled_at IS NOT NULL AND finished_at IS NULL"),
    ),
    # Counters change often: room for them on the page keeps the indexes as they are.
    postgresql_with={"fillfactor": "70"},
)

# Requests whose paths still arrive.
submission = Table(
    "submission",
    metadata,
    Column("id", _ID, primary_key=True),
    # The serialized TransactionSpec of the header.
    Column("spec", LargeBinary, nullable=False),
    # How many paths are stored.
    Column("next", BigInteger, nullable=False, server_default="0"),
    _now("updated_at"),
    Column("user_name", Text, nullable=False, server_default=""),
    Column("group_name", Text, nullable=False, server_default=""),
    Index(None, "updated_at"),
)

# Paths of submissions and of what became of them.
path_chunk = Table(
    "path_chunk",
    metadata,
    Column("transaction_id", _ID, nullable=False),
    Column("chunk", Integer, nullable=False),
    Column("paths", ARRAY(Text), nullable=False),
    PrimaryKeyConstraint("transaction_id", "chunk"),
)

# Who waits for which kind of work; `vt` and `again` are the virtual times up to which the lane has
# asked for it, for new tasks and for those that come back.
lane = Table(
    "lane",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("kind", SmallInteger, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("group_name", Text, nullable=False),
    Column("vt", Double, nullable=False, server_default="0"),
    Column("again", Double, nullable=False, server_default="0"),
    UniqueConstraint("kind", "user_name", "group_name"),
    postgresql_with={"fillfactor": "50"},
)

task = Table(
    "task",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("vt", Double, nullable=False),
    # Number of the transaction; null for scheduled work.
    Column("txn", BigInteger),
    # When a DELAYED task is due.
    Column("not_before", _TIME),
    # Since when it has been failing; null after a success.
    Column("failing_since", _TIME),
    Column("ended_at", _TIME),
    Column("lane", Integer, nullable=False),
    # Number of the worker that holds it; null unless LEASED.
    Column("holder", Integer),
    # Number of the worker that holds or last held it, but for one that only names its files.
    Column("worker", Integer),
    # Counts leases.
    Column("token", Integer, nullable=False, server_default="0"),
    # Token and kind (rules.Ending) of the last lease that ended.
    Column("ended_token", Integer, nullable=False, server_default="0"),
    Column("ended", SmallInteger, nullable=False, server_default="0"),
    Column("kind", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("lost", SmallInteger, nullable=False, server_default="0"),
    Column("cost", REAL, nullable=False),
    Column("chunk", Integer),
    _count("files_done"),
    _count("files_failed"),
    _count("bytes_done"),
    # What the present lease has done so far, by its heartbeats.
    _count("live_files"),
    _count("live_bytes"),
    Column("live_note", Text, nullable=False, server_default=""),
    # Why the last attempt failed or what the task waits for.
    Column("note", Text, nullable=False, server_default=""),
    Column("key", Text),
    Column("schedule", Text),
    Column("payload", LargeBinary, nullable=False),
    # Files met before that it is to serve; so many fail when it is given up. 0: not known.
    _count("files"),
    Index("task_ready", "kind", "priority", "vt", "id", postgresql_where=text("state = 1")),
    # For workers that take small tasks only: theirs are not searched among a million others.
    Index(
        "task_small",
        "kind",
        "priority",
        "vt",
        "id",
        postgresql_where=text("state = 1 AND cost <= 1"),
    ),
    # The cheapest of each lane, for slots that are kept for others than who fills the queue.
    Index("task_lane", "lane", "cost", postgresql_where=text("state = 1")),
    # Given up, for operators.
    Index("task_parked", "id", postgresql_where=text("state = 6")),
    Index("task_delayed", "not_before", postgresql_where=text("state = 3")),
    Index("task_held", "holder", postgresql_where=text("holder IS NOT NULL")),
    Index("task_running", "txn", postgresql_where=text("holder IS NOT NULL")),
    Index("task_waiting", "txn", postgresql_where=text("state = 3")),
    Index("task_blocked", "txn", postgresql_where=text("state = 4")),
    Index("task_of_txn", "txn", "id"),
    Index("task_open_key", "key", postgresql_where=text("key IS NOT NULL AND ended_at IS NULL")),
    # Decides that two tasks of one key never run at the same time.
    Index(
        "task_leased_key",
        "key",
        unique=True,
        postgresql_where=text("key IS NOT NULL AND state = 2"),
    ),
    Index("task_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    # Without these a queue of a million rows bloats by a factor of four and slows down.
    postgresql_with={
        "fillfactor": "80",
        "autovacuum_vacuum_scale_factor": "0",
        "autovacuum_vacuum_threshold": "20000",
        "autovacuum_vacuum_cost_delay": "0",
    },
)

# Files that failed for good. They count once the lease that reported them has ended well.
failure = Table(
    "failure",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("txn", BigInteger),
    Column("task", BigInteger, nullable=False),
    Column("token", Integer, nullable=False),
    # Among the failures of the lease.
    Column("position", Integer, nullable=False),
    Column("counted", Boolean, nullable=False, server_default=text("false")),
    Column("path", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("reason", Text, nullable=False),
    UniqueConstraint("task", "token", "position"),
    Index("failure_counted", "txn", "id", postgresql_where=text("counted")),
)

worker = Table(
    "worker",
    metadata,
    Column("id", Integer, Identity(), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("service", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    # Counts its streams; only the newest one may lease and report.
    Column("session", Integer, nullable=False),
    Column("connected", Boolean, nullable=False),
    Column("seen_at", _TIME, nullable=False),
    Column("trouble", Text, nullable=False, server_default=""),
    postgresql_with={"fillfactor": "50"},
)

# `task` is the run that has not ended yet; `due_at` counts only without one.
schedule = Table(
    "schedule",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", SmallInteger, nullable=False),
    Column("every_seconds", Double, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("due_at", _TIME, nullable=False),
    Column("task", BigInteger),
    # Asked for while a run was on: the next one starts right after it.
    Column("again", Boolean, nullable=False, server_default=text("false")),
)
