"""Requests with lists of paths: bounded, resumed, and refused clearly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from nearline_client.client import Client
from nearline_client.errors import NotAllowed, NotLoggedIn, ServiceError
from nearline_client.names import PathError
from nearline_client.submit import WINDOW
from services.kit.errors import (
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from tests.service.client.gateway import ID, Drop, Gateway


def only(gateway: Gateway) -> list[str]:
    """The paths of the one request that the gateway accepted."""
    (request,) = gateway.requests.values()
    assert request.accepted
    return request.paths


def test_header_carries_all_that_is_asked_for(gateway: Gateway, store: Client) -> None:
    transaction = store.put(
        ["/a", b"/b\xff", Path("/c")],
        label="run",
        holding_id=4,
        tags={"k": "v"},
        group="climate",
        job_label="job",
        transaction_id=ID,
    )
    header = gateway.requests[ID].header
    assert transaction.id == ID
    assert (header.label, header.holding_id, dict(header.tags)) == ("run", 4, {"k": "v"})
    assert (header.group, header.job_label) == ("climate", "job")
    assert only(gateway) == ["/a", "/b\U0010feff", "/c"]
    assert gateway.tokens == ["Bearer good"]


def test_one_path_is_a_list_of_one(gateway: Gateway, store: Client) -> None:
    store.put("/data/a")
    assert only(gateway) == ["/data/a"]


def test_found_paths_are_wire_forms_and_name_the_same_files(
    gateway: Gateway, store: Client
) -> None:
    store.get(["/d/\U0010feff\U0010fe0a"], target="/t", label="l", tags={"a": "b"})
    assert only(gateway) == ["/d/\U0010feff\U0010fe0a"]
    (request,) = gateway.requests.values()
    assert request.header.target == "/t"
    assert request.header.filter.label == "l"


def test_regular_expressions_are_sent_as_they_are(gateway: Gateway, store: Client) -> None:
    store.get(["[.]nc$", "^a/../b"], regex=True)
    assert only(gateway) == ["[.]nc$", "^a/../b"]


@pytest.mark.parametrize("breaks", [[1], [3, 1, 2], [9], [1] * 12])
def test_interrupted_list_goes_on_where_it_was_durable(
    gateway: Gateway, store: Client, breaks: list[int]
) -> None:
    gateway.interruptions.extend(breaks)
    paths = [f"/d/{n}" for n in range(12_345)]
    store.put(iter(paths), transaction_id=ID)
    assert only(gateway) == paths
    assert len(gateway.asked) == len(breaks) + 1
    assert gateway.most_paths == 1000


def test_another_process_can_finish_the_list(gateway: Gateway, store: Client) -> None:
    paths = [f"/d/{n}" for n in range(2_500)]

    def broken() -> Iterator[str]:
        yield from paths[:1_700]
        raise RuntimeError("the list broke")

    with pytest.raises(RuntimeError, match="the list broke"):
        store.put(broken(), transaction_id=ID)
    store.put(paths, transaction_id=ID)
    assert only(gateway) == paths


def test_list_of_any_length_is_held_in_a_window(gateway: Gateway, store: Client) -> None:
    ahead = []

    def listed() -> Iterator[str]:
        for n in range(60_000):
            if n % 1000 == 0:
                ahead.append(n - sum(len(each.paths) for each in gateway.requests.values()))
            yield f"/d/{n}"

    store.put(listed())
    assert len(only(gateway)) == 60_000
    assert max(ahead) <= WINDOW * 1000


def test_long_paths_make_small_batches(gateway: Gateway, store: Client) -> None:
    paths = ["/" + "/".join([f"{n:0255}"] * 16) for n in range(500)]
    store.put(paths)
    assert only(gateway) == paths
    assert gateway.most_paths < 100


def test_path_that_cannot_exist_starts_nothing(gateway: Gateway, store: Client) -> None:
    with pytest.raises(PathError, match="255"):
        store.put(["/a", "/" + "x" * 256])
    assert not any(request.accepted for request in gateway.requests.values())


def test_unavailable_then_fine(gateway: Gateway, store: Client) -> None:
    gateway.faults["Put"] = deque([Unavailable("DOWN", "down"), Drop(), None])
    store.put(["/a"])
    assert only(gateway) == ["/a"]


def test_gives_up_on_a_service_that_stays_away(gateway: Gateway, store: Client) -> None:
    gateway.faults["Put"] = deque(Drop() for _ in range(1000))
    with pytest.raises(ServiceError) as caught:
        store.put(["/a"])
    assert (caught.value.code, caught.value.reason) == ("UNAVAILABLE", "UNREACHABLE")
    assert "did not answer" in str(caught.value)


def test_errors_carry_what_the_service_said(gateway: Gateway, store: Client) -> None:
    gateway.faults["Put"] = deque([
        InvalidArgument("BAD", "the request is wrong", violations=[("label", "is too long")])
    ])  # fmt: skip
    with pytest.raises(ServiceError) as caught:
        store.put(["/a"])
    assert caught.value.reason == "BAD"
    assert caught.value.violations == (("label", "is too long"),)
    assert str(caught.value) == "the request is wrong (label: is too long)"


def test_full_quota_is_final_and_overload_is_not(gateway: Gateway, store: Client) -> None:
    gateway.faults["Put"] = deque([
        ResourceExhausted("BUSY", "later", retry_after=0.01),
        ResourceExhausted("OVER_QUOTA", "climate has used 1 TiB of 1 TiB", group="climate"),
    ])  # fmt: skip
    with pytest.raises(ServiceError, match="1 TiB") as caught:
        store.put(["/a"])
    assert caught.value.metadata == {"group": "climate"}


def test_not_allowed(gateway: Gateway, store: Client) -> None:
    gateway.faults["Put"] = deque([PermissionDenied("NO_GROUP", "you are not in group x")])
    with pytest.raises(NotAllowed, match="not in group x"):
        store.put(["/a"])


def test_refused_token_says_why_and_what_to_do(gateway: Gateway, store: Client) -> None:
    gateway.faults["Put"] = deque([Unauthenticated("EXPIRED", "the token expired")] * 2)
    with pytest.raises(NotLoggedIn, match=r"the token expired; .*NEARLINE_TOKEN"):
        store.put(["/a"])


def test_service_of_another_kind(gateway: Gateway, store: Client) -> None:
    gateway.faults["Put"] = deque([Drop(grpc.StatusCode.UNIMPLEMENTED)])
    with pytest.raises(ServiceError, match="does not offer this"):
        store.put(["/a"])
