"""Layout, manifest and verification of aggregates."""

import hashlib
import io
import json
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.type.v1 import storage_pb2
from services.kit import paxtar
from services.kit.packs import Pack
from services.tape.aggregate import lay_out
from services.tape.verify import Slice, SliceChecker

Attributes = storage_pb2.Attributes
Blob = storage_pb2.Blob

HOLDING = {"holding_id": 3, "label": "ä\n", "user": "alice", "group": "g", "tags": {"a": "b"}}


def attributes(content, kind=Attributes.FILE):
    return Attributes(type=kind, size=len(content), mode=0o640, mtime_ns=-1_500_000_000)


def member(blob, offset, number, path, content, kind=Attributes.FILE):
    digest = hashlib.sha256(content).digest() if kind == Attributes.FILE else b""
    file = storage_pb2.StoredFile(
        id=number, path=path, attributes=attributes(content, kind), digest=digest
    )
    return catalog.ListMembersResponse.Member(blob_id=blob, offset=offset, file=file)


def build(packs, raws):
    """Sources as a cache would hold them: (blobs, members, objects by key)."""
    blobs, members, objects = [], [], {}
    number = 0
    for contents in packs:
        blob_id = len(blobs) + 1
        pack = Pack(1 << 30)
        placed = []
        for content in contents:
            number += 1
            path = f"/d/p{number}"
            one = pack.add(number, path, attributes(content), content, new=True)
            placed.append(member(blob_id, one.offset, number, path, content))
        data = bytes(pack._data) + paxtar.END
        objects[f"k{blob_id}"] = data
        blobs.append(Blob(id=blob_id, format=Blob.TAR, key=f"k{blob_id}", size=len(data)))
        members += placed
    for content in raws:
        number += 1
        blob_id = len(blobs) + 1
        objects[f"k{blob_id}"] = content
        blobs.append(Blob(id=blob_id, format=Blob.RAW, key=f"k{blob_id}", size=len(content)))
        members.append(member(blob_id, 0, number, f"/d/r{number}", content))
    return blobs, members, objects


def write(layout, objects):
    parts = [layout.head]
    for section in layout.sections:
        parts += [section.header, objects[section.key][: section.length]]
        parts.append(paxtar.padding(section.length))
    return b"".join((*parts, paxtar.END))


contents = st.lists(st.binary(max_size=1500), min_size=1, max_size=5)


@given(st.lists(contents, max_size=3), st.lists(st.binary(min_size=1, max_size=3000), max_size=3))
def test_an_aggregate_is_a_tar_whose_manifest_finds_every_byte(packs, raws):
    blobs, members, objects = build(packs, raws)
    layout = lay_out(HOLDING, blobs, members)
    data = write(layout, objects)
    assert len(data) == layout.size
    wanted = {one.file.path: one.file for one in members}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        manifest = archive.extractfile(".nearline/manifest.jsonl").read()
        assert names[0] == ".nearline/manifest.jsonl"
        assert sorted("/" + name for name in names[1:]) == sorted(wanted)
        for name in names[1:]:
            content = archive.extractfile(name).read()
            assert hashlib.sha256(content).digest() == wanted["/" + name].digest
    first, *lines = map(json.loads, manifest.decode().splitlines())
    assert first["format"] == "nearline-aggregate/1"
    assert first["members"] == len(lines)
    assert {key: first[key] for key in HOLDING} == HOLDING
    for line in lines:
        start = first["body_offset"] + line["offset"]
        content = data[start : start + line["size"]]
        assert hashlib.sha256(content).hexdigest() == line["digest"]
    for placed in layout.placed():
        start = layout.body_offset + placed.offset
        content = data[start : start + placed.length]
        assert hashlib.sha256(content).digest() == placed.digest


@given(
    st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=60)), max_size=12),
    st.integers(1, 50),
    st.data(),
)
def test_the_checker_finds_exactly_the_damaged_slices(parts, step, data):
    stream, slices = bytearray(), []
    for number, (gap, content) in enumerate(parts):
        stream += bytes(gap)
        slices.append(Slice(number, len(stream), len(content), hashlib.sha256(content).digest()))
        stream += content
    damaged = {
        one.file_id
        for one in slices
        if one.length and data.draw(st.booleans(), label=f"damage {one.file_id}")
    }
    for number in damaged:
        stream[slices[number].offset] ^= 1
    checker = SliceChecker(slices)
    for start in range(0, len(stream), step):
        checker.feed(bytes(stream[start : start + step]))
    if not stream:
        checker.feed(b"")
    checker.finish()
    assert checker.bad == damaged


def test_a_cut_stream_leaves_its_last_files_bad():
    content = b"x" * 100
    digest = hashlib.sha256(content).digest()
    checker = SliceChecker([Slice(1, 0, 100, digest), Slice(2, 100, 100, digest)])
    checker.feed(content + content[:99])
    checker.finish()
    assert checker.bad == {2}


def test_hard_links_share_a_slice():
    content = b"shared"
    digest = hashlib.sha256(content).digest()
    checker = SliceChecker([Slice(1, 0, 6, digest), Slice(2, 0, 6, digest), Slice(3, 0, 6, b"no")])
    checker.feed(content)
    checker.finish()
    assert checker.bad == {3}
