"""Who may list faults, and of which files."""

from __future__ import annotations

import pytest

from nearline.gateway.v1 import gateway_pb2 as api
from services.gateway.requests import list_faults
from services.kit.errors import PermissionDenied
from services.kit.identity import Identity, Role

CAROL = Identity("carol", {"climate": Role.MANAGER, "ocean": Role.DEPUTY})


def test_a_manager_sees_the_faults_of_that_group_only() -> None:
    wanted = list_faults(CAROL, api.ListFaultsRequest(group="climate", open=True, limit=3))
    assert (list(wanted.groups), wanted.open, wanted.limit) == (["climate"], True, 3)


@pytest.mark.parametrize("group", ["ocean", "land"])
def test_others_do_not(group: str) -> None:
    with pytest.raises(PermissionDenied):
        list_faults(CAROL, api.ListFaultsRequest(group=group))
