"""``python -m services.transfer --config FILE``: answers the mesh; its processes move the bytes."""

import os

from nearline.transfer.v1 import transfer_pb2_grpc
from services.kit.entry import main
from services.kit.server import Server
from services.transfer.config import TransferConfig
from services.transfer.processes import Processes, worker_command
from services.transfer.servicer import TransferServicer


async def serve(config: TransferConfig) -> None:
    """Serve until told to stop; the worker processes drain first."""
    commands = [worker_command("work")] * config.processes
    if config.small_slots:
        commands.append(worker_command("work-small"))
    processes = Processes(commands, config.server.grace_seconds)
    server = Server(config.server)
    servicer = TransferServicer(processes, config.posix.roots)
    server.add(transfer_pb2_grpc.add_TransferServiceServicer_to_server, servicer)
    server.on_drain(processes.stop)
    processes.start()
    await server.run()


def work(config: TransferConfig) -> None:
    """One worker process. What moves bytes is imported here, so the server stays small."""
    from services.transfer import handlers

    os.nice(config.niceness)
    handlers.run(config)


def work_small(config: TransferConfig) -> None:
    """The worker process that takes only small tasks, so that these never wait for large ones."""
    from services.transfer import handlers

    handlers.run(config, small_only=True)


if __name__ == "__main__":
    main("transfer", TransferConfig, serve, {"work": work, "work-small": work_small})
