"""``python -m tests.mutations [LETTER...]``: break the code in each listed way; a test must notice.

Works on a copy of the checkout. Exits 1 when a test passes on broken code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutations.catalogue import MUTATIONS, ROOT, Mutation

_FAILED_TESTS = 1


def copy(directory: Path) -> None:
    """The files of the checkout that git knows or would take, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in map(os.fsdecode, filter(None, listed.split(b"\0"))):
        if (ROOT / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, directory / name)


def notices(mutation: Mutation, root: Path) -> bool:
    """Whether the test fails on the broken copy; the copy is whole again afterwards."""
    path = root / mutation.file
    whole = path.read_text()
    mutation.apply(root)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", *mutation.test.split()],
            cwd=root,
            env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'client'}"},
            capture_output=True,
        )
    finally:
        path.write_text(whole)
    return done.returncode == _FAILED_TESTS


def main(letters: list[str]) -> int:
    """Try all mutations, or those of some guarantees; the exit code."""
    chosen = [one for one in MUTATIONS if not letters or one.guarantee in letters]
    unnoticed = 0
    with tempfile.TemporaryDirectory(prefix="nearline-mutations-") as directory:
        copy(Path(directory))
        for one in chosen:
            noticed = notices(one, Path(directory))
            unnoticed += not noticed
            verdict = "noticed" if noticed else "NOT NOTICED"
            print(f"{verdict:12} ({one.guarantee}) {one.name}: {one.test}", flush=True)
    print(f"mutations = {len(chosen)}\nnot noticed = {unnoticed}")
    return int(bool(unnoticed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
