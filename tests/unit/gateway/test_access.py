"""Who may do what, and what a request may say."""

import uuid

import pytest

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.gateway.v1 import gateway_pb2 as api
from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.type.v1 import task_pb2, transaction_pb2
from services.gateway import access, requests, validate
from services.gateway.system import summarize
from services.kit.errors import InvalidArgument, PermissionDenied, ResourceExhausted
from services.kit.identity import Identity, Role

ALICE = Identity("alice", {"cmip6": Role.USER, "sentinel": Role.MANAGER}, uid=61001, gid=61001)
LONELY = Identity("eve", {})
ID = str(uuid.uuid4())


def test_a_user_field_only_narrows():
    assert access.own_name(ALICE, "") == access.own_name(ALICE, "alice") == "alice"
    with pytest.raises(PermissionDenied, match="you are alice"):
        access.own_name(ALICE, "bob")


def test_the_group_of_a_put_is_one_of_the_callers():
    assert access.own_group(ALICE, "cmip6") == "cmip6"
    with pytest.raises(PermissionDenied) as refused:
        access.own_group(ALICE, "secret")
    assert refused.value.reason == "NOT_A_MEMBER"
    with pytest.raises(InvalidArgument, match="--group"):
        access.own_group(ALICE, "")
    with pytest.raises(PermissionDenied, match="no group"):
        access.own_group(LONELY, "")
    assert access.own_group(Identity("x", {"only": Role.USER}), "") == "only"


def test_reads_stay_within_the_callers_groups():
    selector = access.holdings(ALICE, api.HoldingFilter(all_users=True))
    assert list(selector.groups) == ["cmip6", "sentinel"]
    assert not selector.user
    assert access.holdings(ALICE, api.HoldingFilter()).user == "alice"
    assert access.holdings(ALICE, api.HoldingFilter(user="bob")).user == "bob"
    assert list(access.holdings(LONELY, api.HoldingFilter(all_users=True)).groups) == []
    with pytest.raises(PermissionDenied):
        access.holdings(ALICE, api.HoldingFilter(group="secret"))


def test_a_caller_without_groups_sees_no_transaction():
    assert list(access.visibility(ALICE).groups) == ["cmip6", "sentinel"]
    # To the ledger an empty list of groups means all of them.
    with pytest.raises(PermissionDenied, match="no group"):
        access.visibility(LONELY)
    with pytest.raises(PermissionDenied, match="no group"):
        requests.list_transactions(LONELY, api.ListTransactionsRequest(all_users=True))


@pytest.mark.parametrize(("group", "allowed"), [("sentinel", True), ("cmip6", False)])
def test_changing_what_others_own_takes_a_role(group, allowed):
    theirs = transaction_pb2.Transaction(user="bob", group=group)
    wanted = api.HoldingFilter(user="bob", group=group)
    if allowed:
        access.may_change(ALICE, theirs)
        access.own_holdings(ALICE, wanted)
    else:
        with pytest.raises(PermissionDenied):
            access.may_change(ALICE, theirs)
        with pytest.raises(PermissionDenied):
            access.own_holdings(ALICE, wanted)
    access.may_change(ALICE, transaction_pb2.Transaction(user="alice", group="cmip6"))


def test_a_put_carries_the_caller_and_nothing_else():
    spec = requests.put_spec(ALICE, api.PutRequest.Header(transaction_id=ID, group="cmip6"))
    assert (spec.identity.user, spec.identity.uid, spec.group) == ("alice", 61001, "cmip6")
    assert spec.action == transaction_pb2.Transaction.PUT


def test_a_get_looks_at_all_the_caller_may_read():
    header = api.GetRequest.Header(transaction_id=ID.upper(), target="/scratch//x/")
    spec = requests.get_spec(Identity("a", {"g": Role.USER}), header)
    options = task_pb2.GetOptions.FromString(spec.options)
    assert list(options.holdings.groups) == ["g"]
    assert not options.holdings.user
    assert options.target == "/scratch/x"
    assert spec.id == ID


@pytest.mark.parametrize(
    ("header", "field"),
    [
        (api.PutRequest.Header(transaction_id="x", group="cmip6"), "transaction_id"),
        (api.PutRequest.Header(transaction_id=ID, group="cmip6", label="a" * 256), "label"),
        (api.PutRequest.Header(transaction_id=ID, group="cmip6", label="a\x1b[2J"), "label"),
        (api.PutRequest.Header(transaction_id=ID, group="cmip6", holding_id=-1), "holding_id"),
        (api.PutRequest.Header(transaction_id=ID, group="cmip6", tags={"": "x"}), "tags"),
    ],
)
def test_bad_headers_name_the_field(header, field):
    with pytest.raises(InvalidArgument) as refused:
        requests.put_spec(ALICE, header)
    assert [name for name, _ in refused.value.violations] == [field]


def test_paths_come_out_in_their_one_spelling():
    batch = ["/a//b/./c/", "/x\U0010fe41"]
    assert validate.paths(batch, 0, regex=False) == ["/a/b/c", "/xA"]


@pytest.mark.parametrize(
    "path", ["", "relative", "/a/../b", "/nul\0", "/" + "x" * 256, "/x" * 3000]
)
def test_bad_paths_name_their_position(path):
    with pytest.raises(InvalidArgument) as refused:
        validate.paths(["/fine", path], 10, regex=False)
    assert refused.value.violations[0][0] == "paths.paths[11]"


def test_a_batch_is_neither_empty_nor_endless():
    for batch in ([], ["/a"] * 1001):
        with pytest.raises(InvalidArgument):
            validate.paths(batch, 0, regex=False)


@pytest.mark.parametrize(
    ("bytes_", "files", "full"), [(99, 9, False), (100, 0, True), (0, 10, True), (0, 0, False)]
)
def test_a_full_quota_is_told_at_once(bytes_, files, full):
    usage = catalog.GetUsageResponse(
        group="g", bytes=bytes_, files=files, quota_bytes=100, quota_files=10
    )
    if full:
        with pytest.raises(ResourceExhausted, match="quota"):
            requests.check_quota(usage)
    else:
        requests.check_quota(usage)


def workers(*found):
    return ledger.ListWorkersResponse(workers=[ledger.Worker(**one) for one in found])


def health_of(response):
    names = api.GetSystemResponse.Health
    return {one.name: names.Name(one.health) for one in response.services}


def test_the_system_is_healthy_when_everything_is():
    found = workers(
        {"id": "1", "service": "transfer", "connected": True},
        {"id": "2", "service": "tape", "connected": True},
    )
    response = summarize({}, found)
    assert response.health == api.GetSystemResponse.HEALTHY
    assert set(health_of(response).values()) == {"HEALTHY"}


def test_a_service_that_is_down_and_one_in_trouble_are_told_apart():
    found = workers(
        {"id": "1", "service": "transfer", "connected": True, "trouble": "cache: no answer"},
        {"id": "2", "service": "tape", "connected": False},
    )
    response = summarize({"catalog": "it does not answer"}, found)
    assert response.health == api.GetSystemResponse.DEGRADED
    assert health_of(response) == {
        "gateway": "HEALTHY",
        "catalog": "DOWN",
        "monitor": "HEALTHY",
        "transfer": "DEGRADED",
        "tape": "DOWN",
    }
    assert "cache: no answer" in response.services[3].trouble


def test_without_the_ledger_workers_are_unknown_not_gone():
    response = summarize({"monitor": "it does not answer"}, None)
    assert health_of(response)["tape"] == "DEGRADED"
