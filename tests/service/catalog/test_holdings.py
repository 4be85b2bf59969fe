"""Opening, listing and changing holdings."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from nearline.catalog.v1 import catalog_pb2 as api
from nearline.type.v1.storage_pb2 import HoldingSelector
from tests.service.catalog.harness import GROUP, USER, Catalog, refused


def test_a_put_without_a_label_makes_a_holding_named_by_its_transaction(catalog: Catalog) -> None:
    put = catalog.open()
    assert put.holding.label == put.transaction[:8]
    assert (put.holding.user, put.holding.group) == (USER, GROUP)


def test_a_taken_default_label_is_made_longer(catalog: Catalog) -> None:
    first, second = (f"12345678-0000-4000-8000-00000000000{n}" for n in (1, 2))
    assert catalog.open(transaction=first).holding.label == "12345678"
    assert catalog.open(transaction=second).holding.label == "12345678-0000"


def test_the_label_of_an_own_holding_adds_to_it(catalog: Catalog) -> None:
    first, second = catalog.open("model"), catalog.open("model")
    assert first.holding.id == second.holding.id
    (listed,) = catalog.holdings()
    assert list(listed.transaction_ids) == [first.transaction, second.transaction]


def test_labels_of_others_and_of_other_groups_are_not_met(catalog: Catalog) -> None:
    puts = [
        catalog.open("model"),
        catalog.open("model", user="bob"),
        catalog.open("model", group="gws_two"),
    ]
    assert len({put.holding.id for put in puts}) == 3


def test_a_repeat_returns_the_same_holding_and_says_who_made_it(catalog: Catalog) -> None:
    request = api.OpenHoldingRequest(
        transaction_id=str(uuid.uuid4()), user=USER, group=GROUP, label="model", tags={"a": "1"}
    )
    first, second = catalog.stub.OpenHolding(request), catalog.stub.OpenHolding(request)
    assert first == second
    assert first.created
    catalog.stub.OpenHolding(request)
    assert len(catalog.holdings()[0].transaction_ids) == 1


def test_repeats_at_the_same_time_open_one_holding(catalog: Catalog) -> None:
    transaction = str(uuid.uuid4())
    with ThreadPoolExecutor(8) as threads:
        puts = list(threads.map(lambda _: catalog.open(transaction=transaction), range(8)))
    assert len({put.holding.id for put in puts}) == 1
    assert len(catalog.holdings()) == 1


def test_a_number_must_exist_belong_to_the_user_and_match_the_label(catalog: Catalog) -> None:
    held = catalog.open("model").holding
    assert catalog.open(holding_id=held.id).holding.id == held.id
    assert catalog.open("model", holding_id=held.id).holding.id == held.id
    with refused("HOLDING_NOT_FOUND"):
        catalog.open(holding_id=held.id + 1)
    with refused("NOT_OWNER"):
        catalog.open(holding_id=held.id, user="bob")
    with refused("LABEL_MISMATCH"):
        catalog.open("other", holding_id=held.id)
    with refused("OTHER_GROUP"):
        catalog.open(holding_id=held.id, group="gws_two")


def test_tags_are_added_and_set_ones_stay_with_a_warning(catalog: Catalog) -> None:
    catalog.open("model", tags={"kind": "raw"})
    request = api.OpenHoldingRequest(
        transaction_id=str(uuid.uuid4()),
        user=USER,
        group=GROUP,
        label="model",
        tags={"kind": "cooked", "year": "1999"},
    )
    opened = catalog.stub.OpenHolding(request)
    assert dict(opened.holding.tags) == {"kind": "raw", "year": "1999"}
    (warning,) = opened.warnings
    assert "kind" in warning
    assert "raw" in warning
    assert not opened.created


@pytest.mark.parametrize(
    "fields",
    [
        {"transaction_id": "nonsense"},
        {"user": ""},
        {"label": "two\nlines"},
        {"label": "x" * 256},
        {"holding_id": -1},
        {"tags": {"": "value"}},
        {"tags": {"key": "nul\0"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_bad_requests_to_open_are_refused(catalog: Catalog, fields: dict[str, object]) -> None:
    usual = {"transaction_id": str(uuid.uuid4()), "user": USER, "group": GROUP}
    with refused("INVALID_FIELD") as caught:
        catalog.stub.OpenHolding(api.OpenHoldingRequest(**{**usual, **fields}))
    (violation,) = caught[0].violations
    assert violation[0].startswith(next(iter(fields)))


def test_holdings_are_selected_by_everything_that_is_set(catalog: Catalog) -> None:
    one = catalog.open("model-1", tags={"a": "1", "b": "2"})
    two = catalog.open("model-2", user="bob", tags={"a": "1"})
    other = catalog.open("model-3", group="gws_two")

    def labels(**selector: object) -> list[str]:
        wanted = {"groups": [GROUP], **selector}
        return [found.label for found in catalog.holdings(HoldingSelector(**wanted))]  # type: ignore[arg-type]

    assert labels() == ["model-1", "model-2"]
    assert labels(groups=[]) == []
    assert labels(groups=["gws_two"]) == ["model-3"]
    assert labels(user="bob") == ["model-2"]
    assert labels(label="model-2") == ["model-2"]
    assert labels(label="model") == []
    assert labels(label="^mod.*[12]$", label_regex=True) == ["model-1", "model-2"]
    assert labels(tags={"a": "1"}) == ["model-1", "model-2"]
    assert labels(tags={"a": "1", "b": "2"}) == ["model-1"]
    assert labels(holding_id=two.holding.id) == ["model-2"]
    assert labels(holding_id=other.holding.id) == []
    assert labels(transaction_id=one.transaction) == ["model-1"]
    assert labels(transaction_id=other.transaction) == []
    assert labels(transaction_id=str(uuid.uuid4())) == []
    assert labels(label="x'; drop table holding; --") == []


def test_a_bad_label_pattern_is_refused_with_the_reason(catalog: Catalog) -> None:
    with refused("INVALID_REGEX") as caught:
        catalog.holdings(HoldingSelector(groups=[GROUP], label="(", label_regex=True))
    assert "parentheses" in caught[0].message


def test_holdings_come_in_order_with_limit_and_cursor(catalog: Catalog) -> None:
    numbers = [catalog.open(f"label-{n}").holding.id for n in range(5)]
    assert [found.id for found in catalog.holdings(descending=True)] == numbers[::-1]
    selector = HoldingSelector(groups=[GROUP])
    request = api.ListHoldingsRequest(selector=selector, limit=2)
    (first,) = catalog.stub.ListHoldings(request)
    assert [found.id for found in first.holdings] == numbers[:2]
    rest = catalog.holdings(cursor=first.cursor)
    assert [found.id for found in rest] == numbers[2:]
    with refused("INVALID_FIELD"):
        catalog.holdings(cursor=first.cursor, descending=True)
    with refused("INVALID_FIELD"):
        catalog.holdings(cursor="bogus!")


def test_label_and_tags_change_together(catalog: Catalog) -> None:
    catalog.open("model", tags={"a": "1", "b": "2"})
    request = api.UpdateHoldingRequest(
        selector=HoldingSelector(groups=[GROUP], user=USER, label="model"),
        new_label="better",
        set_tags={"b": "3", "c": "4"},
        delete_tags=["a", "unknown"],
    )
    changed = catalog.stub.UpdateHolding(request).holding
    assert (changed.label, dict(changed.tags)) == ("better", {"b": "3", "c": "4"})
    assert catalog.holdings()[0].label == "better"


def test_an_update_needs_one_match_and_a_free_label(catalog: Catalog) -> None:
    catalog.open("one")
    catalog.open("two")

    def update(new_label: str = "", **selector: object) -> None:
        wanted = HoldingSelector(**{"groups": [GROUP], "user": USER, **selector})  # type: ignore[arg-type]
        catalog.stub.UpdateHolding(api.UpdateHoldingRequest(selector=wanted, new_label=new_label))

    with refused("SEVERAL_HOLDINGS"):
        update("three")
    with refused("HOLDING_NOT_FOUND"):
        update("three", label="nothing")
    with refused("LABEL_TAKEN"):
        update("two", label="one")
    with refused("INVALID_FIELD"):
        update("three", user="")
    assert [found.label for found in catalog.holdings()] == ["one", "two"]


def test_too_many_tags_are_refused(catalog: Catalog) -> None:
    catalog.open("model", tags={f"k{n}": "v" for n in range(64)})
    with refused("TOO_MANY_TAGS"):
        catalog.open("model", tags={"one more": "v"})
