"""Configuration of tape."""

from pathlib import Path
from typing import Annotated

import msgspec

from services.kit.config import Count, LogConfig, PeerConfig, Seconds, Section, ServerConfig
from services.kit.objectstore import S3Config

MIB = 1 << 20
GIB = 1 << 30


class EndpointConfig(Section, frozen=True):
    """Where tape is: an XRootD server (``url``), or a plain directory (``directory``)."""

    url: str | None = None
    """``root://host[:port]//directory`` that aggregates are written below."""
    keytab: Path | None = None
    """Shared secret for the server's sss authentication."""
    directory: Path | None = None
    """A directory that stands in for tape where there is no XRootD server."""

    def __post_init__(self) -> None:
        if (self.url is None) == (self.directory is None):
            raise ValueError("set either url or directory")


class ArchiveConfig(Section, frozen=True):
    """How aggregates are formed."""

    every_seconds: Seconds = 60.0
    """Pause between two looks for what to archive."""
    min_age_seconds: Annotated[int, msgspec.Meta(ge=0)] = 60
    """Blobs younger than this are left for the next look."""
    flush_seconds: Seconds = 3600.0
    """An aggregate that does not fill up is written when its oldest blob has waited this long."""
    target_bytes: Annotated[int, msgspec.Meta(ge=MIB)] = 32 * GIB
    most_members: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 100_000
    most_blobs: Annotated[int, msgspec.Meta(ge=1, le=5000)] = 2000
    confirm_seconds: Seconds = 60.0
    """Pause between two questions whether an aggregate is on tape."""
    abandoned_seconds: Count = 600
    """A claim this old without a task belongs to a plan that died before recording its tasks."""


class RecallConfig(Section, frozen=True):
    """How files come back. Sizes in bytes."""

    poll_seconds: Seconds = 30.0
    """Longest pause between two questions whether tape files are online."""
    pack_threshold: Annotated[int, msgspec.Meta(ge=0, le=64 * MIB)] = 8 * MIB
    """Files below this size share TAR blobs."""
    pack_bytes: Annotated[int, msgspec.Meta(ge=MIB, le=256 * MIB)] = 16 * MIB
    """Size of a full TAR blob; one is held in memory per slot."""
    part_bytes: Annotated[int, msgspec.Meta(ge=5 * MIB, le=256 * MIB)] = 8 * MIB
    """Size of a part of a large upload; five are in memory at once."""


class ReconcileConfig(Section, frozen=True):
    """How what has no owner is found, and how copies with a fault are looked at again."""

    every_seconds: Seconds = 3600.0
    """Pause between two looks for what has no owner."""
    grace_seconds: Annotated[int, msgspec.Meta(ge=0)] = 86_400
    """What is younger is left alone."""
    put_grace_seconds: Annotated[int, msgspec.Meta(ge=0)] = 7 * 86_400
    """What ended PUTs registered and did not store stays so long, for their retry."""
    dry_run: bool = False
    """Only report."""
    verify_seconds: Seconds = 6 * 3600.0
    """Pause between two looks at copies with a fault."""


class TapeConfig(Section, frozen=True):
    """``tape.toml``."""

    server: ServerConfig
    catalog: PeerConfig
    monitor: PeerConfig
    cache: S3Config
    endpoint: EndpointConfig
    archive: ArchiveConfig = ArchiveConfig()
    recall: RecallConfig = RecallConfig()
    reconcile: ReconcileConfig = ReconcileConfig()
    slots: Count = 4
    """Tasks that this process runs at once; a single user gets one less, if there are several."""
    log: LogConfig = LogConfig()
