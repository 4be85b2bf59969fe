"""A monitor as an own process, to be killed: ``replicaprocess.py CONFIG``.

It is the service as it runs elsewhere, but for the port: tests need no certificates here.
"""

from __future__ import annotations

import asyncio
import sys

from nearline.monitor.v1.monitor_pb2_grpc import add_MonitorServiceServicer_to_server
from services.kit.config import load
from services.kit.db import Database
from services.kit.server import Server
from services.monitor.config import Config
from services.monitor.ledger import Ledger
from services.monitor.servicer import MonitorServicer


async def serve(config: Config) -> None:
    database = Database(config.database)
    ledger = Ledger(database, config.ledger)
    server = Server(config.server, mutual_tls=False)
    server.add(add_MonitorServiceServicer_to_server, MonitorServicer(ledger))
    server.on_drain(ledger.drain)
    await ledger.start()
    try:
        await server.run()
    finally:
        await ledger.stop()
        database.close()


if __name__ == "__main__":
    asyncio.run(serve(load(Config, sys.argv[1])))
