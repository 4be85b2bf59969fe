"""Lists and watches that break off, tokens that end, TLS."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trustme

import nearline_client
from nearline.type.v1.storage_pb2 import File, Holding
from nearline.type.v1.task_pb2 import Task
from nearline.type.v1.transaction_pb2 import Failure, Transaction
from nearline_client.auth_errors import ConfigError, IssuerUnavailable
from nearline_client.client import Client
from nearline_client.config import ClientConfig
from nearline_client.errors import ServiceError
from services.kit.errors import Unauthenticated
from tests.service.client.conftest import QUICK
from tests.service.client.gateway import ID, Drop, Gateway, serving


@pytest.mark.parametrize("limit", [0, 5, 6, 100])
def test_broken_list_goes_on_behind_the_cursor(gateway: Gateway, store: Client, limit: int) -> None:
    gateway.files = [File(path=f"/{n}") for n in range(11)]
    gateway.pages["FindFiles"] = deque([2, 0, 4, 2])
    found = [file.path for file in store.find("/", limit=limit)]
    assert found == [f"/{n}" for n in range(11)][: limit or None]


def test_list_and_failures_and_tasks(gateway: Gateway, store: Client) -> None:
    gateway.holdings = [Holding(id=n) for n in range(3)]
    gateway.failures = [Failure(path=f"/{n}") for n in range(3)]
    gateway.tasks = [Task(id=n) for n in range(1, 4)]
    gateway.pages["ListFailures"] = deque([2])
    assert [holding.id for holding in store.list()] == [0, 1, 2]
    assert [failure.path for failure in store.failures(ID)] == ["/0", "/1", "/2"]
    assert [task.id for task in store.tasks(ID)] == [1, 2, 3]


def test_query_narrows(gateway: Gateway, store: Client) -> None:
    list(store.find("/a/./b/", exact=True, user="bob", group="g", tags={"k": "v"}, holding_id=3))
    (request,) = gateway.asked
    assert (request.path, request.exact) == ("/a/b", True)
    assert (request.filter.user, request.filter.group) == ("bob", "g")
    assert (dict(request.filter.tags), request.filter.holding_id) == ({"k": "v"}, 3)


def test_watch_connects_again_and_says_each_state_once(gateway: Gateway, store: Client) -> None:
    queued = Transaction(id=ID, state=Transaction.QUEUED)
    moving = Transaction(id=ID, state=Transaction.TRANSFERRING, files_done=3)
    done = Transaction(id=ID, state=Transaction.COMPLETE)
    gateway.changes = [[queued, moving], [moving], [moving, done]]
    gateway.faults["WatchTransaction"] = deque([Drop(), None, Drop(), None])
    troubles: list[ServiceError] = []
    assert list(store.watch(ID, on_trouble=troubles.append)) == [queued, moving, done]
    assert {trouble.reason for trouble in troubles} == {"UNREACHABLE", "WATCH_ENDED"}


def test_service_that_answered_before_is_waited_for(gateway: Gateway, environment: str) -> None:
    gateway.transactions = [Transaction(id=ID, state=Transaction.COMPLETE)]
    gateway.faults["WatchTransaction"] = deque([Drop()] * 20)
    impatient = replace(QUICK, opening=0.1)
    with nearline_client.connect(timing=impatient) as store:
        store.put(["/a"], transaction_id=ID)
        assert store.wait(ID).state == Transaction.COMPLETE
    gateway.faults["WatchTransaction"] = deque([Drop()] * 1000)
    with nearline_client.connect(timing=impatient) as store, pytest.raises(ServiceError):
        store.wait(ID)


def test_wait_ends_with_the_final_state(gateway: Gateway, store: Client) -> None:
    gateway.changes = [[Transaction(id=ID, state=Transaction.FAILED)]]
    assert store.wait(ID).state == Transaction.FAILED


def test_wait_gives_up_after_its_timeout(gateway: Gateway, store: Client) -> None:
    gateway.transactions = [Transaction(id=ID, state=Transaction.STAGING)]
    gateway.hold_watch = threading.Event()
    with pytest.raises(TimeoutError, match="it goes on"):
        store.wait(ID, timeout=0.2)


def test_unknown_transaction(gateway: Gateway, store: Client) -> None:
    with pytest.raises(ServiceError) as caught:
        store.transaction(ID)
    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "TRANSACTION_NOT_FOUND")


def test_single_questions(gateway: Gateway, store: Client) -> None:
    assert store.update_holding(label="a", new_label="b", set_tags={"k": "v"}).label == "b"
    assert store.cancel(ID).state == Transaction.CANCELLED
    assert [usage.group for usage in store.usage()] == ["climate"]
    assert store.system().services[1].trouble == "no tape"
    assert store.identity().user == "alice"


class Renewable:
    """A login whose token can be renewed; `broken` is what its provider raises."""

    def __init__(self, broken: Exception | None = None) -> None:
        self.number = 1
        self.broken = broken

    def access_token(self) -> str:
        return f"token {self.number}"

    def renew(self, rejected: str | None = None) -> str:
        assert rejected == self.access_token()
        if self.broken:
            raise self.broken
        self.number += 1
        return self.access_token()


def test_refused_token_is_renewed_once(gateway: Gateway, environment: str) -> None:
    gateway.faults["GetIdentity"] = deque([Unauthenticated("EXPIRED", "expired"), None])
    with Client(ClientConfig(url=environment), Renewable(), timing=QUICK) as store:
        assert store.identity().user == "alice"
    assert gateway.tokens == ["Bearer token 1", "Bearer token 2"]


def test_provider_that_is_down_is_not_a_missing_login(gateway: Gateway, environment: str) -> None:
    gateway.faults["GetIdentity"] = deque([Unauthenticated("EXPIRED", "expired")])
    tokens = Renewable(IssuerUnavailable("the provider is down"))
    with (
        Client(ClientConfig(url=environment), tokens, timing=QUICK) as store,
        pytest.raises(ServiceError) as caught,
    ):
        store.identity()
    assert caught.value.reason == "ISSUER_UNAVAILABLE"


def test_tls_needs_an_authority_that_is_trusted(gateway: Gateway, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    ours, theirs = tmp_path / "ours.pem", tmp_path / "theirs.pem"
    authority.cert_pem.write_to_path(str(ours))
    other.cert_pem.write_to_path(str(theirs))
    server = authority.issue_cert("127.0.0.1")
    chain = b"".join(pem.bytes() for pem in server.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(server.private_key_pem.bytes(), chain)])
    with serving(gateway, credentials) as port:
        config = ClientConfig(url=f"https://127.0.0.1:{port}")
        with nearline_client.connect(config=config, token="t", ca=ours, timing=QUICK) as store:
            assert store.identity().user == "alice"
        with (
            nearline_client.connect(config=config, token="t", ca=theirs, timing=QUICK) as store,
            pytest.raises(ServiceError, match="certificate is not trusted"),
        ):
            store.identity()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://store.example.org", "unprotected"),
        ("store.example.org:443", "not a URL"),
        ("ftp://store.example.org", "not the URL of a gateway"),
        ("https://store.example.org/path", "not the URL of a gateway"),
        ("https://store.example.org:port", "not a URL"),
    ],
)
def test_urls_that_are_refused(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        nearline_client.connect(config=ClientConfig(url=url), token="t")
