"""The directory of the demonstration: what is in it, and that it is always the same."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from deploy.local.demo import trees
from deploy.local.demo.compare import survey
from deploy.local.demo.make import Plan, make_tree
from deploy.local.demo.names import MOST_BYTES, ODD_NAMES

PLAN = Plan(files=70, large=(3_000_000,))


@pytest.fixture
def tree(tmp_path: Path) -> bytes:
    root = os.fsencode(tmp_path / "tree")
    make_tree(root, PLAN)
    return root


def test_odd_names_are_legal_and_different() -> None:
    assert len(set(ODD_NAMES)) == len(ODD_NAMES)
    for name in ODD_NAMES:
        assert 1 <= len(name) <= MOST_BYTES
        assert not {b"/", b"\0"} & {bytes((byte,)) for byte in name}
        assert name not in (b".", b"..")


def test_all_that_is_hard_is_there(tree: bytes) -> None:
    facts = survey(tree)
    names = {os.path.basename(path) for path in facts}
    assert set(ODD_NAMES) <= names
    files = [each for each in facts.values() if each.kind == "file"]
    assert sum(path.startswith(b"runs/") for path in facts if path.endswith(b".nc")) == PLAN.files
    assert max(each.size for each in files) == 3_000_000
    assert any(each.size == 0 for each in files)
    assert any(each.hard_link for each in files)
    assert {0o400, 0o750, 0o4711} <= {each.mode for each in files}
    assert any(each.mode & stat.S_ISGID for each in facts.values() if each.kind == "directory")
    assert any(each.mtime_ns < 0 for each in facts.values())
    links = [each.link_target for each in facts.values() if each.kind == "symbolic link"]
    assert any(target.startswith(b"/") for target in links)
    assert b"nowhere/at all" in links
    assert max(path.count(b"/") for path in facts) >= 80


def test_directories_keep_their_old_times(tree: bytes) -> None:
    assert os.stat(os.path.join(tree, b"times", b"directory 0")).st_mtime_ns == -1


def test_the_same_seed_makes_the_same_tree(tree: bytes, tmp_path: Path) -> None:
    again = os.fsencode(tmp_path / "again")
    make_tree(again, PLAN)
    for directory, _, names in os.walk(tree):
        other = again + directory.removeprefix(tree)
        for name in names:
            if not os.path.islink(os.path.join(directory, name)):
                pair = (os.path.join(each, name) for each in (directory, other))
                one, two = (Path(os.fsdecode(path)).read_bytes() for path in pair)
                assert one == two, name


def test_another_seed_makes_another(tree: bytes, tmp_path: Path) -> None:
    other = os.fsencode(tmp_path / "other")
    make_tree(other, Plan(PLAN.files, PLAN.large, seed=2))
    name = b"runs/r00/01/tas_day_r00i1p1_00000.nc"
    one, two = (Path(os.fsdecode(os.path.join(root, name))).read_bytes() for root in (tree, other))
    assert one != two


def test_large_files_do_not_repeat_themselves(tree: bytes) -> None:
    content = Path(os.fsdecode(tree), "large", "scene_1.zarr.zip").read_bytes()
    assert content[:500_000] not in content[1 << 20 :]


def test_remove_also_closed_directories(tree: bytes) -> None:
    trees.remove(tree)
    assert not os.path.lexists(tree)
    trees.remove(tree)
