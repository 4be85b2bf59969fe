"""When a file that the endpoint does not show counts as lost."""

from services.kit.catalogclient import Blob
from services.kit.errors import Unavailable
from services.kit.faults import witnesses
from services.tape.context import Context

SILENT_POLLS = 3
"""What the endpoint says so many times in a row counts."""
_RETRY_SECONDS = 30.0


def require_others(context: Context, blob_id: int) -> None:
    """Unavailable unless the endpoint shows other files that it should have.

    Without any its storage may not be mounted, and a person has to look.
    """
    others = witnesses(context.catalog, Blob.TAPE, blob_id)
    if others:
        shown = any(state.exists for state in context.tape.stat(others))
    else:
        shown = next(iter(context.tape.list()), None) is not None
    if not shown:
        raise Unavailable(
            "TAPE_EMPTY",
            "the tape endpoint shows none of the files that it should have; its storage may not be"
            " mounted",
            retry_after=_RETRY_SECONDS,
        )
