"""What users ask for and are told: labels, tags, lists, duplicates, versions, cancel, stage."""

from __future__ import annotations

import json
import os
import uuid

import pytest

import nearline_client
from nearline.gateway.v1 import gateway_pb2 as api
from nearline.type.v1.storage_pb2 import Blob
from nearline.type.v1.transaction_pb2 import Transaction
from nearline_client.states import is_final
from tests.fixtures.store import (
    GROUP,
    LIMIT,
    Person,
    Store,
    cache_objects,
    quick_tape,
    tiers,
    watch_until,
)


def files(person: Person, count: int, content: bytes = b"content\n") -> tuple[bytes, list[bytes]]:
    """A new directory with files a00, a01, …"""
    root = person.directory()
    return root, [person.file(root + b"/a%02d" % n, content) for n in range(count)]


def cached(person: Person, holding_id: int) -> set[bytes]:
    """Paths of a holding's files that are in the cache."""
    found = person.files(holding_id=holding_id)
    return {file.path.encode() for file in found if "CACHE" in tiers(file)}


def new_label() -> str:
    return f"label-{uuid.uuid4().hex[:12]}"


# -- holdings, labels and tags -------------------------------------------------------------------


def test_without_a_label_the_holding_is_named_by_the_transaction(store: Store) -> None:
    _, paths = files(store.alice, 1)
    put = store.alice.put(*paths)
    assert put.label == put.id[:8]


def test_a_label_is_added_to_and_an_id_must_fit_it(store: Store) -> None:
    alice, label = store.alice, new_label()
    _, paths = files(alice, 3)
    first = alice.put(paths[0], label=label)
    second = alice.put(paths[1], label=label)
    third = alice.put(paths[2], holding_id=first.holding_id, label=label)
    assert first.holding_id == second.holding_id == third.holding_id
    assert len(alice.files(holding_id=first.holding_id)) == 3

    with pytest.raises(nearline_client.ServiceError) as refused:
        alice.client.put(paths, holding_id=first.holding_id, label="another", group=GROUP)
    assert refused.value.code == "FAILED_PRECONDITION"
    with pytest.raises(nearline_client.ServiceError) as refused:
        alice.client.put(paths, holding_id=2**40, group=GROUP)
    assert refused.value.code == "NOT_FOUND"


def test_nobody_adds_to_the_holding_of_another(store: Store) -> None:
    label = new_label()
    _, paths = files(store.alice, 1)
    put = store.alice.put(*paths, label=label)
    _, others = files(store.bob, 1)
    assert store.bob.put(*others, label=label).holding_id != put.holding_id
    with pytest.raises(nearline_client.ServiceError) as refused:
        store.bob.client.put(others, holding_id=put.holding_id, group=GROUP)
    assert refused.value.code in ("NOT_FOUND", "PERMISSION_DENIED")


def test_tags_choose_holdings_and_a_tag_that_differs_warns(store: Store) -> None:
    alice, label, mark = store.alice, new_label(), uuid.uuid4().hex
    root, paths = files(alice, 2)
    put = alice.put(paths[0], label=label, tags={"mark": mark, "year": "2026"})
    again = alice.put(paths[1], label=label, tags={"year": "2027"}, expect="COMPLETE_WITH_WARNINGS")
    assert "year" in again.warnings[0]
    assert alice.holding(put.holding_id).tags == {"mark": mark, "year": "2026"}
    assert [one.id for one in alice.client.list(tags={"mark": mark})] == [put.holding_id]
    assert not list(alice.client.list(tags={"mark": mark, "year": "2027"}))

    target = alice.directory()
    alice.get(root, target=target, tags={"mark": mark})
    assert sorted(os.listdir(target + root)) == [b"a00", b"a01"]
    missed = alice.get(root, target=target, tags={"mark": "no such"}, expect="FAILED")
    assert set(alice.failures(missed).values()) == {"NOT_FOUND"}


def test_meta_changes_label_and_tags(store: Store) -> None:
    alice, label, new = store.alice, new_label(), new_label()
    _, paths = files(alice, 1)
    put = alice.put(*paths, label=label, tags={"draft": "yes", "model": "um"})
    done = alice.nlds("meta", "-l", label, "-L", new, "-T", "model:ifs,a:b", "-D", "draft", "-j")
    assert done.returncode == 0, done.stderr
    changed = json.loads(done.stdout)
    assert (changed["label"], changed["tags"]) == (new, {"model": "ifs", "a": "b"})
    assert alice.holding(put.holding_id).label == new
    assert not list(alice.client.list(label=label))


def test_the_label_of_another_holding_cannot_be_taken(store: Store) -> None:
    alice, first, second = store.alice, new_label(), new_label()
    _, paths = files(alice, 1)
    alice.put(*paths, label=first)
    alice.put(*paths, label=second)
    with pytest.raises(nearline_client.ServiceError) as refused:
        alice.client.update_holding(label=second, new_label=first)
    assert refused.value.code == "ALREADY_EXISTS"


def test_list_and_find_by_pattern(store: Store) -> None:
    alice, label = store.alice, new_label()
    root, _ = files(alice, 3)
    alice.put(root, label=label)
    done = alice.nlds("list", "-x", "-l", f"^{label}$", "-j")
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == [label]
    done = alice.nlds("find", "-1", "-x", "-p", "/a0[12]$", "-l", f"^{label}$")
    assert sorted(done.stdout.split()) == [root + b"/a01", root + b"/a02"]
    done = alice.nlds("find", "-1", "-p", root, "-l", label, "-L", "2", "-9")
    assert len(done.stdout.splitlines()) == 2


# -- failures per file ---------------------------------------------------------------------------


def test_a_path_that_the_holding_has_fails_alone(store: Store) -> None:
    alice, label = store.alice, new_label()
    _, paths = files(alice, 3)
    alice.put(*paths[:2], label=label)
    done = alice.nlds("put", "-w", "-j", "-g", GROUP, "-l", label, *paths)
    assert done.returncode == 10, done.stderr
    put = json.loads(done.stdout)
    assert put["state"] == "COMPLETE_WITH_ERRORS"
    assert {one["code"] for one in put["failures"]} == {"ALREADY_EXISTS"}
    listed = alice.nlds("stat", "-F", put["id"])
    assert sorted(listed.stdout.split()) == sorted(paths[:2])


def test_when_every_file_fails_the_request_has_failed(store: Store) -> None:
    alice, label = store.alice, new_label()
    _, paths = files(alice, 2)
    alice.put(*paths, label=label)
    done = alice.nlds("put", "-w", "-g", GROUP, "-l", label, *paths)
    assert done.returncode == 11, done.stderr


def test_a_get_of_what_is_not_stored_fails_by_path(store: Store) -> None:
    alice = store.alice
    root, paths = files(alice, 1)
    put = alice.put(*paths)
    target = alice.directory()
    get = alice.get(
        paths[0],
        root + b"/never stored",
        target=target,
        holding_id=put.holding_id,
        expect="COMPLETE_WITH_ERRORS",
    )
    assert (get.files_total, get.files_done) == (2, 1)
    assert list(alice.failures(get).values()) == ["NOT_FOUND"]


def test_without_a_holding_the_newest_version_comes_back(store: Store) -> None:
    alice = store.alice
    root, paths = files(alice, 2, b"old\n")
    old = alice.put(root)
    alice.file(paths[0], b"new\n")
    alice.put(paths[0])
    target = alice.directory()
    alice.get(root, target=target)
    contents = [open(target + path, "rb").read() for path in paths]  # noqa: SIM115
    assert contents == [b"new\n", b"old\n"]
    alice.get(root, target=target, holding_id=old.holding_id)
    with open(target + paths[0], "rb") as stream:
        assert stream.read() == b"old\n"


def test_a_get_by_pattern(store: Store) -> None:
    alice = store.alice
    root, _ = files(alice, 4)
    put = alice.put(root)
    target = alice.directory()
    alice.get("/a0[13]$", regex=True, target=target, holding_id=put.holding_id)
    assert sorted(os.listdir(target + root)) == [b"a01", b"a03"]


# -- requests ------------------------------------------------------------------------------------


def test_a_repeated_request_is_the_same_request(store: Store) -> None:
    alice, id = store.alice, str(uuid.uuid4())
    _, paths = files(alice, 2)
    first = alice.put(*paths, transaction_id=id)
    again = alice.put(*paths, transaction_id=id)
    assert (again.id, again.holding_id) == (id, first.holding_id)
    assert len(alice.files(holding_id=first.holding_id)) == 2
    with pytest.raises(nearline_client.ServiceError) as refused:
        alice.client.get(paths, request_id=id)
    assert refused.value.code == "ALREADY_EXISTS"


def test_lists_of_many_paths(store: Store) -> None:
    alice, count = store.alice, 2500
    root = alice.directory()
    with alice.acting():
        for number in range(count):
            open(root + b"/%d" % number, "wb").close()
    listed = b"".join(root + b"/%d\n" % number for number in range(count))
    done = alice.nlds("putlist", "-w", "-j", "-g", GROUP, "-", stdin=listed)
    assert done.returncode == 0, done.stderr
    put = json.loads(done.stdout)
    assert int(put["files_done"]) == count
    target = alice.directory()
    done = alice.nlds(
        "getlist", "-w", "-i", str(put["holding_id"]), "-r", target, "-", stdin=listed
    )
    assert done.returncode == 0, done.stderr
    assert len(os.listdir(target + root)) == count


def test_watch_follows_a_request_to_its_end(store: Store) -> None:
    alice = store.alice
    root, _ = files(alice, 20)
    put = alice.client.put([root], group=GROUP)
    seen = list(alice.client.watch(put.id))
    assert [is_final(one.state) for one in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].files_done == 21
    done = alice.nlds("watch", put.id)
    assert (done.returncode, b"COMPLETE" in done.stdout) == (0, True)


def test_stat_shows_requests_and_their_tasks(store: Store) -> None:
    alice, job = store.alice, new_label()
    root, _ = files(alice, 3)
    put = alice.put(root, job_label=job)
    done = alice.nlds("stat", "-b", job, "-j")
    (shown,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (shown["id"], shown["action"], shown["state"]) == (put.id, "PUT", "COMPLETE")
    done = alice.nlds("stat", "-S", put.id, "-j")
    assert {json.loads(line)["kind"] for line in done.stdout.splitlines()} == {"SCAN", "UPLOAD"}


def test_a_cancelled_get_stops_waiting_for_tape(store: Store) -> None:
    alice = store.alice
    root, _ = files(alice, 5)
    put = alice.put(root)
    store.to_tape(put.holding_id)
    quick_tape(store.stack, mount=3.0)
    get = alice.client.get([root], alice.directory(), holding_id=put.holding_id)
    watch_until(alice, get.id, lambda now: "tape" in now.waiting_for)
    done = alice.nlds("cancel", get.id)
    assert done.returncode == 0, done.stderr
    assert alice.client.wait(get.id, LIMIT).state == Transaction.CANCELLED
    assert alice.nlds("watch", get.id).returncode == 12


def test_stage_brings_files_to_the_cache_only(store: Store) -> None:
    alice = store.alice
    root, paths = files(alice, 10, b"staged\n")
    put = alice.put(root)
    store.to_tape(put.holding_id)
    with cache_objects(store.stack) as recalled:
        done = alice.nlds("stage", "-w", "-i", str(put.holding_id), paths[3], paths[4])
    assert done.returncode == 0, done.stderr
    assert len(recalled) == 1
    assert cached(alice, put.holding_id) == {paths[3], paths[4]}


def test_a_pinned_file_stays_in_the_cache(store: Store) -> None:
    alice = store.alice
    _, paths = files(alice, 2)
    for path in paths:
        put = alice.put(path, label=f"pin-{os.path.basename(os.path.dirname(path)).decode()}")
        store.wait_safe(put.holding_id)
    stage = alice.client.stage(paths[:1], pin_days=1, holding_id=put.holding_id)
    alice.ended(stage)
    store.carol.ended(store.carol.client.evict(put.holding_id))
    assert cached(alice, put.holding_id) == {paths[0]}


def test_usage_counts_by_group_and_tier(store: Store) -> None:
    dave = store.dave
    (before,) = dave.client.usage("sentinel")
    _, paths = files(dave, 2, b"x" * 1000)
    put = dave.put(*paths, group="sentinel")

    def probe() -> str | None:
        (now,) = dave.client.usage("sentinel")
        added = (now.files - before.files, now.bytes - before.bytes)
        taped = (now.tape_files - before.tape_files, now.tape_bytes - before.tape_bytes)
        return None if added == taped == (2, 2000) else f"added {added}, on tape {taped}"

    store.wait(probe, f"usage after {put.id}")
    done = dave.nlds("usage", "-j")
    assert [json.loads(line)["group"] for line in done.stdout.splitlines()] == ["sentinel"]


def test_over_quota_is_refused(store: Store) -> None:
    alice, dave = store.alice, store.dave
    with pytest.raises(nearline_client.NotAllowed):
        dave.client.set_quota("sentinel", quota_files=1)
    _, paths = files(dave, 2)
    dave.put(paths[0], group="sentinel")
    alice.client.set_quota("sentinel", quota_files=1)
    try:
        with pytest.raises(nearline_client.ServiceError) as refused:
            dave.client.put(paths[1:], group="sentinel")
        assert (refused.value.code, refused.value.reason) == ("RESOURCE_EXHAUSTED", "OVER_QUOTA")
    finally:
        alice.client.set_quota("sentinel")


def test_evict_is_for_managers(store: Store) -> None:
    _, paths = files(store.alice, 1)
    put = store.alice.put(*paths)
    with pytest.raises(nearline_client.NotAllowed) as refused:
        store.alice.client.evict(put.holding_id)
    assert refused.value.reason == "ROLE_NEEDED"


def test_what_is_not_safe_on_tape_stays_in_the_cache(store: Store) -> None:
    _, paths = files(store.alice, 1)
    quick_tape(store.stack, migrate_delay=3600.0)
    put = store.alice.put(*paths)

    def written() -> str | None:
        (file,) = store.alice.files(holding_id=put.holding_id)
        return None if Blob.WRITTEN in {one.state for one in file.locations} else "no tape copy"

    store.wait(written, "the tape file")
    store.carol.ended(store.carol.client.evict(put.holding_id))
    (file,) = store.alice.files(holding_id=put.holding_id)
    assert tiers(file) == ["CACHE", "TAPE"]
    quick_tape(store.stack)


def test_system_is_healthy(store: Store) -> None:
    def probe() -> str | None:
        answer = store.alice.client.system()
        return None if answer.health == api.GetSystemResponse.HEALTHY else str(answer)

    store.wait(probe, "the system")
    done = store.alice.nlds("system", "-j")
    shown = json.loads(done.stdout)
    assert [one["name"] for one in shown["services"]] == [
        "gateway", "catalog", "monitor", "transfer", "tape",
    ]  # fmt: skip
    assert {one["health"] for one in shown["services"]} == {"HEALTHY"}


def test_what_is_not_built_says_so(store: Store) -> None:
    with pytest.raises(nearline_client.ServiceError) as refused:
        store.alice.client.delete([store.alice.directory()], group=GROUP)
    assert refused.value.code == "UNIMPLEMENTED"
