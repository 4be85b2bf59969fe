"""The list of mutations is that of the document, and each still fits the code."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from tests.mutations.catalogue import MUTATIONS, ROOT, Mutation

DOCUMENT = (ROOT / "docs/guarantees.md").read_text()


def documented() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for letter, section in re.findall(r"\*\*\((\w)\)(.*?)(?=\n\*\*\(|\n## )", DOCUMENT, re.DOTALL):
        for names in re.findall(r"\*Mutations:\* (.*)\.", section):
            found[letter] |= set(names.split("; "))
    return found


def test_every_guarantee_lists_its_mutations() -> None:
    listed: dict[str, set[str]] = defaultdict(set)
    for mutation in MUTATIONS:
        listed[mutation.guarantee].add(mutation.name)
    assert documented() == listed
    assert sorted(listed) == list("abcdefghi")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_mutation_fits_the_code(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text().count(mutation.old) == 1
    path, _, name = mutation.test.partition(" ")[0].partition("::")
    assert f"def {name}(" in (ROOT / path).read_text() or not name
