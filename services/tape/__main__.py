"""``python -m services.tape --config FILE``: works for the ledger, answers about the endpoint."""

from nearline.tape.v1 import tape_pb2_grpc
from nearline.type.v1 import task_pb2
from services.kit.catalogclient import CATALOG, CatalogClient
from services.kit.channel import aio_channel, sync_channel
from services.kit.entry import main
from services.kit.objecterrors import CACHE, CACHE_SPACE
from services.kit.objectstore import ObjectStore
from services.kit.server import Server
from services.kit.worker import Worker, schedule
from services.kit.working import Watchdog, serve_and_work
from services.tape.config import EndpointConfig, TapeConfig
from services.tape.context import Context, OpenTasks
from services.tape.endpoint import TAPE, TapeEndpoint
from services.tape.endpoints.directory import DirectoryEndpoint
from services.tape.endpoints.xrootd import XRootDEndpoint
from services.tape.handlers import NEEDS, handlers
from services.tape.servicer import TapeServicer

Task = task_pb2.Task


def open_endpoint(config: EndpointConfig) -> tuple[TapeEndpoint, str, str]:
    """The endpoint, the name of its driver, and where it is."""
    if config.url is not None:
        return XRootDEndpoint(config.url, config.keytab), "xrootd", config.url
    assert config.directory is not None  # the configuration was checked
    return DirectoryEndpoint(config.directory), "directory", str(config.directory)


async def serve(config: TapeConfig) -> None:
    """Wire tape and serve until told to stop."""
    endpoint, driver, where = open_endpoint(config.endpoint)
    cache = ObjectStore(config.cache)
    context = Context(
        config=config,
        catalog=CatalogClient(sync_channel(config.catalog), "tape"),
        ledger=OpenTasks(sync_channel(config.monitor)),
        cache=cache,
        tape=endpoint,
    )
    watchdog = Watchdog(
        {
            TAPE: endpoint.healthy,
            CACHE: cache.healthy,
            CACHE_SPACE: cache.has_room,
            CATALOG: context.catalog.healthy,
        },
        NEEDS,
    )
    worker = Worker(
        lambda: aio_channel(config.monitor),
        service="tape",
        handlers=handlers(context),
        slots=config.slots,
        reserved=min(1, config.slots - 1),
        schedules=[
            schedule("archive", Task.PLAN_ARCHIVE, config.archive.every_seconds),
            schedule("reconcile", Task.RECONCILE, config.reconcile.every_seconds),
            schedule("verify", Task.VERIFY, config.reconcile.verify_seconds),
        ],
        trouble=watchdog.trouble,
        paused=watchdog.paused,
        saw=watchdog.saw,
        grace=config.server.grace_seconds,
    )
    server = Server(config.server)
    servicer = TapeServicer(context, driver, where)
    server.add(tape_pb2_grpc.add_TapeServiceServicer_to_server, servicer)
    await serve_and_work(server, worker, watchdog)


if __name__ == "__main__":
    main("tape", TapeConfig, serve)
