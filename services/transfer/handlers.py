"""A worker process: which handler does which kind of work, and what it works with."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import uvloop

from nearline.type.v1 import task_pb2
from services.kit.catalogclient import CATALOG, CatalogClient
from services.kit.channel import aio_channel, sync_channel
from services.kit.jobs import Handler, Job, JobContext, Outcome
from services.kit.objecterrors import CACHE, CACHE_SPACE
from services.kit.objectstore import ObjectStore
from services.kit.perfile import Whose, failing_each, of_files_task, of_scan
from services.kit.worker import Worker, schedule
from services.kit.working import Watchdog, work
from services.transfer.config import TransferConfig
from services.transfer.context import Context, PathLists
from services.transfer.courtesy import (
    GiveWay,
    Requests,
    SmallWork,
    processors_are_busy,
)
from services.transfer.directories import finish_directories
from services.transfer.download import download
from services.transfer.evict import evict
from services.transfer.processes import die_with_parent, small_work
from services.transfer.resolve import resolve
from services.transfer.scan import scan
from services.transfer.tidy import tidy
from services.transfer.upload import upload
from services.transfer.userfs import UserFs

Task = task_pb2.Task

_HANDLERS: dict[task_pb2.Task.Kind.ValueType, Callable[[Context, Job, JobContext], Outcome]] = {
    Task.SCAN: scan,
    Task.UPLOAD: upload,
    Task.RESOLVE: resolve,
    Task.DOWNLOAD: download,
    Task.FINISH_DIRECTORIES: finish_directories,
    Task.TIDY: tidy,
    Task.EVICT: evict,
}

_OF_USERS = frozenset({
    Task.SCAN, Task.UPLOAD, Task.RESOLVE, Task.DOWNLOAD, Task.FINISH_DIRECTORIES, Task.TIDY,
})  # fmt: skip
"""Kinds of work that somebody waits for."""

_NEEDS = {
    Task.SCAN: (CATALOG,),
    Task.UPLOAD: (CATALOG, CACHE, CACHE_SPACE),
    Task.RESOLVE: (CATALOG,),
    Task.DOWNLOAD: (CATALOG, CACHE),
    Task.FINISH_DIRECTORIES: (CATALOG,),
    Task.TIDY: (CATALOG,),
    Task.EVICT: (CATALOG, CACHE),
}


_FILES_OF: dict[task_pb2.Task.Kind.ValueType, Whose] = {
    Task.SCAN: of_scan,
    Task.UPLOAD: of_files_task,
    Task.DOWNLOAD: of_files_task,
    Task.RESOLVE: of_files_task,
}


def _per_file(
    kind: task_pb2.Task.Kind.ValueType, handler: Handler, catalog: CatalogClient
) -> Handler:
    files_of = _FILES_OF.get(kind)
    return failing_each(handler, files_of, catalog) if files_of else handler


def _works(context: Context) -> dict[task_pb2.Task.Kind.ValueType, Handler]:
    return {
        kind: _per_file(kind, partial(handler, context), context.catalog)
        for kind, handler in _HANDLERS.items()
    }


def _first(handler: Handler, small: SmallWork, requests: Requests) -> Handler:
    """As ``handler``; large work gives way to it, if it is all of a small request."""

    def run(job: Job, ctx: JobContext) -> Outcome:
        request = job.transaction.id
        with ExitStack() as stack:
            stack.enter_context(requests.timed(request))
            if requests.is_small(request):
                stack.enter_context(small.going_on())
            return handler(job, ctx)

    return run


def run(config: TransferConfig, *, small_only: bool = False) -> None:
    """Work for the ledger until told to stop, or until the service that started this ends."""
    die_with_parent()
    uvloop.run(_run(config, small_only))


async def _run(config: TransferConfig, small_only: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cache = ObjectStore(config.cache)
    context = Context(
        config=config,
        catalog=CatalogClient(sync_channel(config.catalog), "transfer"),
        ledger=PathLists(sync_channel(config.monitor)),
        cache=cache,
        users=UserFs(map(os.fsencode, config.posix.roots), config.posix.min_uid),
    )
    small, requests = small_work(), Requests()
    slots = config.small_slots if small_only else config.slots
    watchdog = Watchdog(
        {
            CACHE: cache.healthy,
            CACHE_SPACE: cache.has_room,
            CATALOG: context.catalog.healthy,
        },
        _NEEDS,
    )
    worker = Worker(
        lambda: aio_channel(config.monitor),
        service="transfer",
        handlers={
            kind: _first(handler, small, requests) if small_only else handler
            for kind, handler in _works(context).items()
            if kind in _OF_USERS or not small_only
        },
        slots=slots,
        reserved=slots - 1 if small_only else min(1, slots - 1),
        small_only=small_only,
        give_way=(lambda: None) if small_only else GiveWay(small, processors_are_busy),
        schedules=[schedule("evict", Task.EVICT, config.evict.every_seconds)],
        trouble=watchdog.trouble,
        paused=watchdog.paused,
        saw=watchdog.saw,
        grace=config.server.grace_seconds,
    )
    await work(worker, watchdog, stop)
