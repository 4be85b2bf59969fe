"""What a find becomes in the catalog, which takes a path or a pattern, never both ways."""

from __future__ import annotations

import pytest

from nearline.gateway.v1 import gateway_pb2 as api
from services.gateway.requests import find_files
from services.kit.identity import Identity, Role

ALICE = Identity("alice", {"climate": Role.USER})


@pytest.mark.parametrize(
    ("regex", "exact", "recursive"),
    [(False, False, True), (False, True, False), (True, False, False), (True, True, False)],
)
def test_patterns_are_not_recursive(regex: bool, exact: bool, recursive: bool) -> None:
    request = api.FindFilesRequest(path="/d", regex=regex, exact=exact)
    selector = find_files(ALICE, request).selector
    assert (selector.regex, selector.recursive) == (regex, recursive)
