"""Old replicas serve on a new schema: the code before a migration passes its tests on it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {
    "catalog": ("test_blobs.py", "test_holdings.py"),
    "monitor": ("test_submit.py", "test_failing.py"),
}


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


def versions(service: str) -> list[Path]:
    return sorted((ROOT / "services" / service / "migrations/versions").glob("[0-9]*.py"))


def old_code(service: str, directory: Path) -> Path:
    """The whole repository as it was before the service's newest migration, with all migrations."""
    if not (ROOT / ".git").exists():
        pytest.skip("the old code is in the history, and this is no clone")
    newest = str(versions(service)[-1].relative_to(ROOT))
    added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", newest).decode().strip()
    with tarfile.open(fileobj=io.BytesIO(git("archive", f"{added}~1" if added else "HEAD"))) as tar:
        tar.extractall(directory, filter="data")
    for version in versions(service):
        shutil.copy(version, directory / version.relative_to(ROOT))
    return directory


@pytest.mark.parametrize("service", [name for name in TESTS if len(versions(name)) > 1])
def test_the_code_before_the_last_migration_works_on_the_new_schema(
    service: str, tmp_path: Path
) -> None:
    old = old_code(service, tmp_path)
    tests = [f"tests/service/{service}/{name}" for name in TESTS[service]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=old,
        env={**os.environ, "PYTHONPATH": f"{old}{os.pathsep}{old / 'client'}"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
