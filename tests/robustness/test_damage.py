"""Bytes that changed in the cache are noticed, never delivered, and replaced from tape."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from deploy.local.stack import Stack
from nearline.type.v1.storage_pb2 import File
from nearline_client import names
from tests.fixtures.store import Store, cache_objects, same, tiers

Harm = Callable[[Stack, str], None]
MIB = 1 << 20


def damage(stack: Stack, key: str) -> None:
    """Turn every byte of an object over."""
    store = stack.site.seaweed.store
    content = store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
    flipped = bytes(content).translate(bytes(255 - value for value in range(256)))
    store.client.put_object(Bucket=store.bucket, Key=key, Body=flipped)


def remove(stack: Stack, key: str) -> None:
    store = stack.site.seaweed.store
    store.client.delete_object(Bucket=store.bucket, Key=key)


@pytest.fixture
def tree(store: Store) -> bytes:
    """Files that go into a pack, and one with an object of its own."""
    root = store.alice.directory()
    for number in range(10):
        store.alice.file(root + b"/%d" % number, os.urandom(10_000))
    store.alice.file(root + b"/large", os.urandom(20 * MIB))
    return root


@pytest.mark.parametrize("harm", [damage, remove])
def test_what_is_safe_on_tape_comes_back_from_there(store: Store, tree: bytes, harm: Harm) -> None:
    with cache_objects(store.stack) as objects:
        put = store.alice.put(tree)
    store.wait_safe(put.holding_id)
    for key in objects:
        harm(store.stack, key)
    target = store.alice.directory()
    store.alice.get(tree, target=target, holding_id=put.holding_id)
    same(tree, target + tree)


@pytest.mark.parametrize("harm", [damage, remove])
def test_what_is_nowhere_else_fails_and_nothing_is_delivered(
    store: Store, tree: bytes, harm: Harm
) -> None:
    store.stack.stop("tape")
    with cache_objects(store.stack) as objects:
        put = store.alice.put(tree)
    assert len(objects) == 2
    for key in objects:
        harm(store.stack, key)
    target = store.alice.directory()
    get = store.alice.get(
        tree, target=target, holding_id=put.holding_id, expect="COMPLETE_WITH_ERRORS"
    )
    failed = store.alice.failures(get)
    assert set(failed.values()) == {"NO_COPY"}
    assert len(failed) == 11
    # The directory itself has no bytes to lose.
    assert os.listdir(target + tree) == []


def test_damaged_bytes_do_not_reach_tape(store: Store, tree: bytes) -> None:
    store.stack.stop("tape")
    with cache_objects(store.stack) as objects:
        put = store.alice.put(tree)
    (large,) = [key for key in objects if key.endswith(".raw")]
    damage(store.stack, large)
    store.stack.up()

    def probe() -> str | None:
        files = store.alice.files(holding_id=put.holding_id)
        left = [file.path for file in files if "large" not in file.path and not on_tape(file)]
        return f"{len(left)} files are not on tape yet" if left else None

    store.wait(probe, "the archive")
    damaged = store.alice.files(tree + b"/large", holding_id=put.holding_id)
    assert not any(on_tape(file) for file in damaged)
    get = store.alice.get(
        tree + b"/large",
        target=store.alice.directory(),
        holding_id=put.holding_id,
        expect="FAILED",
    )
    assert store.alice.failures(get).keys() == {names.encode(tree + b"/large")}


def on_tape(file: File) -> bool:
    return "TAPE" in tiers(file)
