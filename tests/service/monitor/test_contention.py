"""Several replicas at the same rows: they wait for one another, never crosswise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

from structlog.testing import capture_logs

from nearline.monitor.v1 import monitor_pb2 as pb
from nearline.type.v1.task_pb2 import Task
from services.kit.config import DatabaseConfig
from services.kit.db import Database
from services.kit.jobs import new_task
from services.monitor import leases, results, submissions
from services.monitor.book import report_of
from services.monitor.config import LedgerConfig
from services.monitor.leases import Leased
from services.monitor.rules import Limits
from tests.service.monitor.rig import spec

USERS, BATCHES, WORKERS = 6, 25, 3
KINDS = (Task.SCAN, Task.UPLOAD)
LIMITS = Limits(retry_first=0.01, retry_most=0.02)
WorkRequest = pb.WorkRequest


def submit(database: Database, user: str) -> None:
    asked = spec(user)
    tasks = [new_task(KINDS[n % 2]) for n in range(100)]
    database.write_sync(submissions.begin, asked, LedgerConfig())
    commit = pb.SubmitRequest.Commit(tasks=tasks)
    database.write_sync(submissions.accept, asked, commit, LedgerConfig())


def said(random: Random, task: Leased) -> WorkRequest:
    lease = pb.Lease(task_id=task.task_id, token=task.token)
    follow_up = new_task(random.choice(KINDS))
    return random.choice((
        WorkRequest(complete=WorkRequest.Complete(lease=lease, follow_ups=[follow_up])),
        WorkRequest(fail=WorkRequest.Fail(lease=lease, code="DOWN", transient=True)),
        WorkRequest(hand_back=WorkRequest.HandBack(lease=lease)),
    ))  # fmt: skip


def work(database: Database, name: str) -> None:
    """Lease tasks of all users, and report on them in one batch in any order."""
    random = Random(name)
    hello = WorkRequest.Hello(worker_id=name, service="transfer", kinds=KINDS, slots=20)
    stream = database.write_sync(leases.hello, hello, LIMITS)
    for _ in range(BATCHES):
        leased = database.write_sync(leases.lease, stream, KINDS, 20).leased
        random.shuffle(leased)
        reports = [report_of(said(random, task)) for task in leased]
        database.write_sync(results.record, reports, LIMITS)
        database.write_sync(leases.promote)


def test_batches_of_many_users_never_deadlock(database_config: DatabaseConfig) -> None:
    database = Database(database_config)
    for number in range(USERS):
        submit(database, f"user-{number}")
    with capture_logs() as logs, ThreadPoolExecutor(WORKERS) as threads:
        running = [threads.submit(work, database, f"worker-{n}") for n in range(WORKERS)]
        for each in running:
            each.result()
    database.close()
    assert [line for line in logs if line["event"] == "database"] == []
