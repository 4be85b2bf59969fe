"""Opaque cursors of listings: where to go on, bound to what was asked for."""

import base64
import binascii
import hashlib
import struct

from google.protobuf.message import Message

from services.catalog.rules import invalid

_FORM = struct.Struct(">B8sqq")
_VERSION = 1


def fingerprint(selector: Message, descending: bool) -> bytes:
    """What ties a cursor to a question: eight bytes of the selector and the direction."""
    data = selector.SerializeToString(deterministic=True)
    return hashlib.blake2b(data, digest_size=8, key=bytes([descending])).digest()


def encode(question: bytes, holding_id: int, file_id: int = 0) -> str:
    """The cursor behind a holding, or behind a file of it."""
    data = _FORM.pack(_VERSION, question, holding_id, file_id)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(cursor: str, question: bytes) -> tuple[int, int] | None:
    """Holding and file to go on behind, None for the empty cursor.

    InvalidArgument for a cursor that nobody gave out, or that belongs to another question.
    """
    if not cursor:
        return None
    try:
        data = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, asked, holding_id, file_id = _FORM.unpack(data)
    except (binascii.Error, ValueError, struct.error) as error:
        raise invalid("cursor", "was not given out by this service; start without one") from error
    if version != _VERSION or asked != question:
        raise invalid("cursor", "belongs to another question; repeat the question it came from")
    return holding_id, file_id
