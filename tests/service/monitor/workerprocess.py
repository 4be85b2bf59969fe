"""A worker as an own process, to be killed: ``workerprocess.py ADDRESS DIRECTORY``.

UPLOAD tasks note their start in DIRECTORY/starts, wait until DIRECTORY/go exists, and follow up
with their payload counted down.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from nearline.type.v1.task_pb2 import Task
from services.kit.channel import aio_channel
from services.kit.config import PeerConfig
from services.kit.worker import Done, Job, JobContext, Worker


def main(address: str, directory: Path) -> None:
    def upload(job: Job, context: JobContext) -> Done:
        with (directory / "starts").open("a") as starts:
            starts.write(f"{os.getpid()} {job.task_id} {job.attempt}\n")
        while not (directory / "go").exists():
            context.check()
            time.sleep(0.02)
        context.failures([(f"/{job.task_id}", "NOT_FOUND", "gone")])
        return Done(files_total=3, files_done=2, bytes_done=10)

    async def run() -> None:
        peer = PeerConfig(address=address)
        worker = Worker(
            lambda: aio_channel(peer), service="transfer", handlers={Task.UPLOAD: upload}, slots=2
        )
        await worker.run(asyncio.Event())

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
