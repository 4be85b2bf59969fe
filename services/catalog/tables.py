"""The catalog's tables. Written for 100 million files: see the comments for what that rules out.

The bulk tables (file, location, usage, reservation) have no foreign keys: the statement
that writes a row has just read or locked what it refers to, and a check per row halves the rate.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from services.catalog.rules import CACHE, STORED, WRITING

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "pk": "%(table_name)s_pkey",
    }
)

# Byte order makes prefix ranges and keysets the same under any locale of the database.
_NAME = Text(collation="C")
_TIME = DateTime(timezone=True)

PREFIX = 512
"""Characters of a directory that its order index holds; a whole path can be too long for one."""

file_numbers = Sequence("file_number", metadata=metadata, data_type=BigInteger)
blob_numbers = Sequence("blob_number", metadata=metadata, data_type=BigInteger)

holding = Table(
    "holding",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("label", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("group_name", Text, nullable=False),
    Column("tags", JSONB, nullable=False, server_default="{}"),
    Column("created_at", _TIME, nullable=False, server_default=func.now()),
    UniqueConstraint("user_name", "group_name", "label"),
    Index(None, "group_name", "id"),
    Index(
        "holding_tags", "tags", postgresql_using="gin", postgresql_ops={"tags": "jsonb_path_ops"}
    ),
)

# A PUT transaction that opened a holding. Its short number stands for the UUID in each file row.
put = Table(
    "put",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("transaction_id", Uuid(as_uuid=False), nullable=False, unique=True),
    Column("holding_id", ForeignKey("holding.id"), nullable=False),
    Column("created_holding", Boolean, nullable=False),
    Column("opened_at", _TIME, nullable=False, server_default=func.now()),
    Index(None, "holding_id", "id"),
)

# A directory of files, with the slash at its end, so that `path || name` is a whole path, and all
# below a directory is one prefix. `hash` is the SHA-256 of the path: it stands in for uniqueness.
directory = Table(
    "directory",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("hash", LargeBinary, nullable=False, unique=True),
    Column("path", _NAME, nullable=False),
    Index("directory_order", text(f'"left"(path, {PREFIX})'), "id"),
    Index(
        "directory_trigrams",
        "path",
        postgresql_using="gin",
        postgresql_ops={"path": "gin_trgm_ops"},
    ),
)

# `state`: registered (a PUT found it), stored (it has had a copy) or lost (none is left to read).
file = Table(
    "file",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("dir_id", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("holding_id", BigInteger, nullable=False),
    Column("put_id", BigInteger, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("gid", BigInteger, nullable=False),
    Column("mode", SmallInteger, nullable=False),
    Column("type", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("name", _NAME, nullable=False),
    Column("digest", LargeBinary),
    Column("link_target", Text),
    Column("hardlink", Text),
    Column("xattrs", JSONB),
    CheckConstraint("size >= 0", name="size"),
    Index("file_path", "dir_id", "name", "holding_id", unique=True),
    Index("file_order", "holding_id", "id", unique=True),
    # Each row is updated once, when it is stored: room on the page keeps that off the indexes.
    postgresql_with={"fillfactor": "80"},
)

blob = Table(
    "blob",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("tier", SmallInteger, nullable=False),
    Column("format", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False, server_default=str(WRITING)),
    Column("key", Text, nullable=False, unique=True),
    Column("size", BigInteger, nullable=False, server_default="0"),
    Column("adler32", BigInteger, nullable=False, server_default="0"),
    Column("holding_id", ForeignKey("holding.id"), nullable=False),
    Column("files", BigInteger, nullable=False, server_default="0"),
    Column("writer", Text, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=func.now()),
    Column("sealed_at", _TIME),
    Column("last_access", _TIME),
    # Cache: some file of it has no tape copy.
    Column("needs_archive", Boolean, nullable=False, server_default=text("false")),
    # Cache: the tape blob in state WRITING that will hold its files.
    Column("aggregate_id", BigInteger),
    # What the seal answered, for its repeats.
    Column("outcome", JSONB),
    Index("blob_tier_state", "tier", "state", "id"),
    Index(None, "holding_id", "id"),
    Index(
        "blob_archivable",
        "holding_id",
        "id",
        postgresql_where=text("needs_archive AND aggregate_id IS NULL"),
    ),
    Index(
        "blob_evictable",
        "last_access",
        "id",
        postgresql_where=text(f"tier = {CACHE} AND state = {STORED} AND NOT needs_archive"),
    ),
    Index(None, "aggregate_id", postgresql_where=text("aggregate_id IS NOT NULL")),
)

# A readable copy: rows go when their blob stops being readable. The length is the file's size.
location = Table(
    "location",
    metadata,
    Column("file_id", BigInteger, nullable=False),
    Column("blob_id", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("tier", SmallInteger, nullable=False),
    Column("copy", SmallInteger, nullable=False, server_default="1"),
    PrimaryKeyConstraint("file_id", "tier", "copy"),
    Index("location_members", "blob_id", "offset", "file_id"),
)

# The tape blob that a claim made, and the cache blobs it was promised.
aggregate = Table(
    "aggregate",
    metadata,
    Column("blob_id", ForeignKey("blob.id"), primary_key=True, autoincrement=False),
    Column("claim_key", Text, nullable=False, unique=True),
    Column("sources", ARRAY(BigInteger), nullable=False),
)

# Copies that were found missing or damaged, kept for operators and for repeated reports.
fault = Table(
    "fault",
    metadata,
    Column("blob_id", ForeignKey("blob.id"), nullable=False),
    Column("file_id", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("reported_at", _TIME, nullable=False, server_default=func.now()),
    # When and how the file got a good copy in its place; null while the fault is open.
    Column("repaired_at", _TIME),
    Column("repair", Text),
    PrimaryKeyConstraint("blob_id", "file_id"),
    Index("fault_open", "file_id", postgresql_where=text("repaired_at IS NULL")),
)

pin = Table(
    "pin",
    metadata,
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("until", _TIME, nullable=False),
    PrimaryKeyConstraint("first", "last"),
    Index(
        "pin_range",
        text("int8range(first, last, '[]')"),
        postgresql_using="gist",
    ),
)

# Changes of a holding's counts, folded from time to time: one hot row would serialize all writers.
usage = Table(
    "usage",
    metadata,
    Column("holding_id", BigInteger, nullable=False, index=True),
    Column("files", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("cache_files", BigInteger, nullable=False),
    Column("cache_bytes", BigInteger, nullable=False),
    Column("tape_files", BigInteger, nullable=False),
    Column("tape_bytes", BigInteger, nullable=False),
)

# What PUTs registered and have not stored yet, as changes too. Counts against quotas for a while.
reservation = Table(
    "reservation",
    metadata,
    Column("put_id", BigInteger, nullable=False, index=True),
    Column("files", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

quota = Table(
    "quota",
    metadata,
    Column("group_name", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("files", BigInteger, nullable=False),
    CheckConstraint("bytes >= 0 AND files >= 0", name="not_negative"),
)
