"""The ids of retries: every transaction has at most one, whose id follows from its own."""

import uuid

_NAMESPACE = uuid.UUID("0d3f4cfc-6a35-4ea5-93a1-5d6c8f2b9e10")


def retry_id(id_: str) -> str:
    """The id of the one retry of a transaction, so that a repeated request is the same one."""
    return str(uuid.uuid5(_NAMESPACE, id_))
