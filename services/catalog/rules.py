"""Decisions of the catalog as pure functions: steps of blobs, tags, labels, room in a quota."""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from nearline.type.v1.storage_pb2 import Attributes, Blob
from services.kit.errors import FailedPrecondition, InvalidArgument

CACHE, TAPE = int(Blob.CACHE), int(Blob.TAPE)
WRITING, STORED, WRITTEN, SAFE = (
    int(Blob.WRITING), int(Blob.STORED), int(Blob.WRITTEN), int(Blob.SAFE),
)  # fmt: skip
REMOVING, REMOVED, LOST = int(Blob.REMOVING), int(Blob.REMOVED), int(Blob.LOST)

READABLE = (STORED, WRITTEN, SAFE)
"""States in which a blob's members may be read; only such blobs have locations."""

FILE_REGISTERED, FILE_STORED, FILE_LOST = 0, 1, 2
"""States of a file: found by a PUT; it has had a copy; no readable copy is left."""

MOST_TEXT = 255
MOST_TAGS = 64
DIGEST_BYTES = 32

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_INT = 2**63 - 1

# What may follow what, beside a seal (which alone makes a blob readable).
_STEPS = {
    CACHE: {
        WRITING: {REMOVING, REMOVED},
        STORED: {REMOVING, LOST},
        REMOVING: {REMOVED},
        LOST: {REMOVING, REMOVED},
        REMOVED: set(),
    },
    TAPE: {
        WRITING: {REMOVING, REMOVED},
        WRITTEN: {SAFE, REMOVING, LOST},
        SAFE: {REMOVING, LOST},
        REMOVING: {REMOVED},
        LOST: {REMOVING, REMOVED},
        REMOVED: set(),
    },
}
_SEALED = {CACHE: {STORED}, TAPE: {WRITTEN, SAFE}}


def step_needed(blob_id: int, tier: int, present: int, wanted: int) -> bool:
    """Whether the blob has to change to be ``wanted``; FailedPrecondition when it must not."""
    if present == wanted or (present == SAFE and wanted == WRITTEN):
        return False
    if wanted not in _STEPS[tier][present]:
        raise FailedPrecondition(
            "BLOB_STATE",
            f"blob {blob_id} is {_state(present)} in {Blob.Tier.Name(_tier(tier))} and cannot "
            f"become {_state(wanted)}; look at its state with ListBlobs",
            blob_id=blob_id,
        )
    return True


@dataclass(frozen=True, slots=True)
class Seal:
    """What a seal says about its blob."""

    blob_id: int
    size: int
    adler32: int
    state: int
    pack_adler32: int = 0

    @property
    def checksum(self) -> int:
        """Adler-32 of the bytes in either tier; 0 where it is not known."""
        return self.adler32 or self.pack_adler32


def check_seal(seal: Seal, tier: int) -> None:
    """InvalidArgument for a seal that no blob of ``tier`` can have."""
    if seal.state not in _SEALED[tier]:
        names = " or ".join(_state(state) for state in sorted(_SEALED[tier]))
        raise invalid("seal.state", f"must be {names} for a blob in {Blob.Tier.Name(_tier(tier))}")
    if tier == CACHE and seal.adler32:
        raise invalid("seal.adler32", "belongs to tape blobs; leave it 0 for a cache blob")


def seal_is_repeat(seal: Seal, present: int, size: int, adler32: int, answered: bool) -> bool:
    """Whether the blob was sealed alike before; FailedPrecondition if it can take no such seal.

    ``answered`` says that an earlier seal's outcome is known.
    """
    if present == WRITING:
        return False
    if answered and (size, adler32) == (seal.size, seal.checksum):
        return True
    raise FailedPrecondition(
        "BLOB_SEALED",
        f"blob {seal.blob_id} is {_state(present)} and was not sealed with these values; "
        "write the files to a newly allocated blob",
        blob_id=seal.blob_id,
    )


def check_reinstated(blob_id: int, tier: int, present: int, wanted: int) -> None:
    """Refuse to read copies of a blob again whose bytes go, or to make it what it cannot be."""
    if wanted not in _SEALED[tier]:
        names = " or ".join(_state(state) for state in sorted(_SEALED[tier]))
        raise invalid("state", f"must be {names} for a blob in {Blob.Tier.Name(_tier(tier))}")
    if present not in (*READABLE, LOST):
        raise FailedPrecondition(
            "BLOB_STATE",
            f"blob {blob_id} is {_state(present)}: its bytes go, or never were complete",
            blob_id=blob_id,
        )


def default_labels(transaction_id: str) -> list[str]:
    """Labels for a new holding, in the order to try: longer ones if the first is taken."""
    return [transaction_id[:8], transaction_id[:13], transaction_id]


def merge_tags(
    present: Mapping[str, str], wanted: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """``present`` with the tags of ``wanted`` that it lacks, and a warning for each other."""
    warnings = [
        f"tag {key!r} stays {present[key]!r}; use meta to change it to {value!r}"
        for key, value in sorted(wanted.items())
        if present.get(key, value) != value
    ]
    return limit_tags({**wanted, **present}), warnings


def change_tags(
    present: Mapping[str, str], set_tags: Mapping[str, str], delete: Iterable[str]
) -> dict[str, str]:
    """``present`` after an update; a key that is both set and deleted is set."""
    gone = set(delete)
    kept = {key: value for key, value in present.items() if key not in gone}
    return limit_tags({**kept, **set_tags})


def limit_tags(tags: dict[str, str]) -> dict[str, str]:
    """``tags``; FailedPrecondition when there are too many for one holding."""
    if len(tags) > MOST_TAGS:
        raise FailedPrecondition(
            "TOO_MANY_TAGS",
            f"the holding would have {len(tags)} tags; at most {MOST_TAGS} are kept: delete some",
        )
    return tags


def check_text(value: str, field: str) -> str:
    """A label, name, or part of a tag: 1 to 255 characters, no control characters."""
    if not 1 <= len(value) <= MOST_TEXT:
        raise invalid(field, f"has {len(value)} characters; give 1 to {MOST_TEXT}")
    if _CONTROL.search(value):
        raise invalid(field, "holds control characters; leave them out")
    return value


def check_tags(tags: Mapping[str, str], field: str) -> dict[str, str]:
    """Tags, each of whose keys and values is a proper text."""
    if len(tags) > MOST_TAGS:
        raise invalid(field, f"has {len(tags)} tags; at most {MOST_TAGS} are accepted")
    for text in chain.from_iterable(tags.items()):
        check_text(text, field)
    return dict(tags)


def check_transaction(text: str, field: str = "transaction_id") -> str:
    """A transaction's id in its one spelling."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise invalid(field, "must be a UUID") from error


def check_pattern(text: str, field: str, most: int = 4096) -> str:
    """A regular expression; its syntax is PostgreSQL's to judge."""
    if not text or len(text) > most or "\0" in text:
        raise invalid(field, f"must be a regular expression of 1 to {most} characters")
    return text


def check_number(value: int, field: str, least: int = 0, most: int = _MAX_INT) -> int:
    """A number from ``least`` to ``most``."""
    if not least <= value <= most:
        raise invalid(field, f"is {value}; it must be from {least} to {most}")
    return value


def check_attributes(attributes: Attributes, field: str) -> Attributes:
    """Metadata that can be stored: a known type, a size that fits it, and plausible bits."""
    kind = attributes.type
    if kind not in (Attributes.FILE, Attributes.DIRECTORY, Attributes.SYMLINK):
        raise invalid(f"{field}.type", "must be FILE, DIRECTORY or SYMLINK")
    if attributes.size < 0 or (attributes.size and kind != Attributes.FILE):
        raise invalid(f"{field}.size", "must be 0 or more, and 0 for directories and links")
    if attributes.mode > 0o7777:
        raise invalid(f"{field}.mode", "must be 0 to 07777, without the bits of the type")
    if "\0" in attributes.link_target or "\0" in attributes.hardlink:
        raise invalid(field, "holds a NUL character; leave it out")
    if any("\0" in name for name in attributes.xattrs):
        raise invalid(f"{field}.xattrs", "has a name with a NUL character; leave it out")
    return attributes


def check_digest(digest: bytes, kind: int | None, field: str) -> bytes:
    """SHA-256 of a file; empty for directories and links, and where the type is unknown."""
    if len(digest) not in (0, DIGEST_BYTES):
        raise invalid(field, f"has {len(digest)} bytes; a SHA-256 has {DIGEST_BYTES}")
    if kind is not None and bool(digest) != (kind == Attributes.FILE):
        raise invalid(field, "must be set for files and empty for directories and links")
    return digest


def fits(sizes: Sequence[int], room_files: int | None, room_bytes: int | None) -> list[bool]:
    """Which of the files still fit, taken in order; None is no bound."""
    verdicts = []
    for size in sizes:
        fit = (room_files is None or room_files > 0) and (room_bytes is None or room_bytes >= size)
        room_files = room_files - fit if room_files is not None else None
        room_bytes = room_bytes - size * fit if room_bytes is not None else None
        verdicts.append(fit)
    return verdicts


def invalid(field: str, problem: str) -> InvalidArgument:
    """An InvalidArgument about one field."""
    return InvalidArgument("INVALID_FIELD", f"{field} {problem}", violations=[(field, problem)])


def _tier(tier: int) -> Blob.Tier.ValueType:
    return Blob.Tier.ValueType(tier)


def _state(state: int) -> str:
    return Blob.State.Name(Blob.State.ValueType(state))
