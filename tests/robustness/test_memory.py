"""No service needs more memory for a large file than for a small one."""

from __future__ import annotations

import os
import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local import procfs
from deploy.local.demo import trees
from deploy.local.demo.make import write_large
from deploy.local.parts import SERVICES
from deploy.local.stack import Stack
from tests.fixtures.store import Store, same

MIB = 1 << 20
SIZE = int(os.environ.get("LARGE_FILE_MIB", "512")) * MIB
MOST = 300 * 10**6


@contextmanager
def highest_memory(stack: Stack) -> Iterator[dict[str, int]]:
    """Per service the most bytes that its processes had together inside the block."""
    highest: defaultdict[str, int] = defaultdict(int)
    leaders = {name: stack.pid(name) for name in SERVICES}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            for name, leader in leaders.items():
                used = sum(_proportional(info.pid) for info in procfs.members(leader or 0))
                highest[name] = max(highest[name], used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        done.set()
        watcher.join()


def _proportional(pid: int) -> int:
    """Bytes of a process, with its part of what it shares (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ValueError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def test_memory_does_not_depend_on_the_size_of_a_file(store: Store) -> None:
    alice = store.alice
    root, target = alice.directory(), alice.directory()
    with alice.acting():
        write_large(root + b"/large", SIZE, random.Random(7))
    with highest_memory(store.stack) as memory:
        put = alice.put(root)
        store.to_tape(put.holding_id)
        alice.get(root, target=target, holding_id=put.holding_id)
    same(root, target + root)
    for directory in (root, target):
        trees.remove(directory)
    assert memory.keys() == set(SERVICES)
    assert {name: used for name, used in memory.items() if used > MOST} == {}
