"""EVICT: drops cache copies of what is safe on tape."""

from nearline.type.v1 import task_pb2
from services.kit import crash
from services.kit.catalogclient import Blob
from services.kit.jobs import Done, Job, JobContext
from services.transfer.config import EvictConfig
from services.transfer.context import Context


def evict(context: Context, job: Job, ctx: JobContext) -> Done:
    """Evict what the payload names, or down to the low watermark when it was scheduled."""
    task = task_pb2.EvictTask.FromString(job.payload)
    if job.transaction.id:
        return _evict(context, ctx, task.holding_id, None)
    used = sum(usage.cache_bytes for usage in context.catalog.usage())
    return _evict(context, ctx, 0, surplus(context.config.evict, used))


def surplus(config: EvictConfig, used: int) -> int:
    """Bytes to free so that the low watermark is reached; 0 below the high one. Pure."""
    if not config.capacity_bytes or used < config.high_watermark * config.capacity_bytes:
        return 0
    return used - int(config.low_watermark * config.capacity_bytes)


def _evict(context: Context, ctx: JobContext, holding_id: int, wanted: int | None) -> Done:
    """Evict ``wanted`` bytes (None: all) of a holding (0: of any).

    The catalog stops reading a blob when it is claimed; its object goes after that, and a claim
    that was not finished is answered again. So nothing is lost whenever this stops.
    """
    files = freed = 0
    while wanted is None or freed < wanted:
        ctx.check()
        missing = 0 if wanted is None else wanted - freed
        blobs = context.catalog.claim_eviction(holding_id, missing)
        if not blobs:
            break
        crash.point("transfer.evict.before_delete")
        context.cache.delete_many(blob.key for blob in blobs)
        crash.point("transfer.evict.deleted")
        context.catalog.set_states([blob.id for blob in blobs], Blob.REMOVED)
        files += sum(blob.files for blob in blobs)
        freed += sum(blob.size for blob in blobs)
        ctx.progress(len(blobs), sum(blob.size for blob in blobs))
    return Done(files_total=files, bytes_total=freed, files_done=files, bytes_done=freed)
