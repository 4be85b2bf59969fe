"""Which handler does which kind of work."""

from collections.abc import Callable
from functools import partial

from nearline.type.v1 import task_pb2
from services.kit.catalogclient import CATALOG
from services.kit.jobs import Handler, Job, JobContext, Outcome
from services.kit.objecterrors import CACHE, CACHE_SPACE
from services.kit.perfile import failing_each, of_recall, of_stage
from services.tape.archive import archive, confirm, plan
from services.tape.context import Context
from services.tape.endpoint import TAPE
from services.tape.faulty import verify
from services.tape.recall import recall, stage
from services.tape.reconcile import reconcile

Task = task_pb2.Task

_HANDLERS: dict[task_pb2.Task.Kind.ValueType, Callable[[Context, Job, JobContext], Outcome]] = {
    Task.PLAN_ARCHIVE: plan,
    Task.ARCHIVE: archive,
    Task.CONFIRM: confirm,
    Task.STAGE: stage,
    Task.RECALL: recall,
    Task.RECONCILE: reconcile,
    Task.VERIFY: verify,
}

NEEDS = {
    Task.PLAN_ARCHIVE: (CATALOG,),
    Task.ARCHIVE: (CATALOG, CACHE, TAPE),
    Task.CONFIRM: (CATALOG, TAPE),
    Task.STAGE: (CATALOG, TAPE),
    Task.RECALL: (CATALOG, CACHE, CACHE_SPACE, TAPE),
    Task.RECONCILE: (CATALOG, CACHE, TAPE),
    Task.VERIFY: (CATALOG, CACHE, TAPE),
}
"""What each kind of work depends on."""


def handlers(context: Context) -> dict[task_pb2.Task.Kind.ValueType, Handler]:
    """The handlers of tape, working with ``context``."""
    made: dict[task_pb2.Task.Kind.ValueType, Handler] = {
        kind: partial(handler, context) for kind, handler in _HANDLERS.items()
    }
    for kind, files_of in ((Task.STAGE, of_stage), (Task.RECALL, of_recall)):
        made[kind] = failing_each(made[kind], files_of, context.catalog)
    return made
