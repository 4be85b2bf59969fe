"""Configuration of transfer."""

from typing import Annotated

import msgspec

from services.kit.config import Count, LogConfig, PeerConfig, Seconds, Section, ServerConfig
from services.kit.objectstore import S3Config

MIB = 1 << 20


class PosixConfig(Section, frozen=True):
    """Where users' files are, and as whom they are touched."""

    roots: list[str]
    """Directories below which files may be read and written; nothing else is touched."""
    min_uid: Count = 1000
    """Ids below this are never served."""


class PackConfig(Section, frozen=True):
    """How files become blobs. All in bytes unless named otherwise."""

    pack_threshold: Annotated[int, msgspec.Meta(ge=0, le=64 * MIB)] = 8 * MIB
    """Files below this size share TAR blobs."""
    pack_bytes: Annotated[int, msgspec.Meta(ge=MIB, le=256 * MIB)] = 16 * MIB
    """Size of a full TAR blob; one is held in memory per slot."""
    pack_files: Annotated[int, msgspec.Meta(ge=1, le=5000)] = 2000
    """Most files of one task."""
    first_scan_files: Count = 2_000
    """The first scan of a request leaves what is behind so many entries to others: it is short."""
    scan_files: Count = 50_000
    """A scan that has met so many leaves the directories that are next to other tasks."""
    part_bytes: Annotated[int, msgspec.Meta(ge=5 * MIB, le=256 * MIB)] = 8 * MIB
    """Size of a part of a large upload; five are in memory at once."""


class EvictConfig(Section, frozen=True):
    """When cache copies that are safe on tape are dropped."""

    capacity_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Size of the cache; 0: never evict unasked."""
    high_watermark: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    """Start at this share of the capacity."""
    low_watermark: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8
    """Stop at this share of the capacity."""
    every_seconds: Seconds = 300.0

    def __post_init__(self) -> None:
        if self.low_watermark > self.high_watermark:
            raise ValueError("low_watermark must not be above high_watermark")


class TransferConfig(Section, frozen=True):
    """``transfer.toml``."""

    server: ServerConfig
    catalog: PeerConfig
    monitor: PeerConfig
    cache: S3Config
    posix: PosixConfig
    pack: PackConfig = PackConfig()
    evict: EvictConfig = EvictConfig()
    processes: Count = 2
    """Worker processes for work of any size; each holds a stream to the ledger."""
    slots: Count = 3
    """Tasks that one of them runs at once; a single user gets one less, if there are several."""
    small_slots: Annotated[int, msgspec.Meta(ge=0)] = 4
    """Tasks at once of one more process that takes only small ones, one of each user; 0: none."""
    niceness: Annotated[int, msgspec.Meta(ge=0, le=19)] = 19
    """Of the processes for work of any size, so that the one for small work comes first."""
    log: LogConfig = LogConfig()
