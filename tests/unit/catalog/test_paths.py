"""Directories and names, prefixes, URLs, and what a pattern demands of a directory."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearline_client import names
from services.catalog import paths
from services.catalog.paths import Hint
from services.kit.errors import InvalidArgument

components = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\u2028\u2029"),
    min_size=1,
    max_size=8,
).filter(lambda text: text not in (".", ".."))
clean_paths = st.lists(components, max_size=5).map(
    lambda parts: names.encode(("/" + "/".join(parts)).encode())
)


@given(clean_paths)
def test_directory_and_name_make_the_path_again(path: str) -> None:
    directory, name = paths.split(path)
    assert directory + name == path
    assert directory.endswith("/")
    assert "/" not in name


@given(clean_paths, clean_paths)
def test_below_is_exactly_one_range_of_directories(top: str, path: str) -> None:
    directory = paths.split(path)[0]
    prefix = paths.below(top)
    inside = prefix.encode() <= directory.encode() < paths.after(prefix).encode()
    assert inside == directory.startswith(prefix)


@given(st.lists(clean_paths, max_size=8))
def test_outermost_prefixes_cover_all_and_not_one_another(tops: list[str]) -> None:
    prefixes = [paths.below(top) for top in tops]
    kept = paths.outermost(prefixes)
    assert set(kept) <= set(prefixes)
    for prefix in prefixes:
        assert sum(prefix.startswith(other) for other in kept) == 1
        assert paths.covered(prefix, frozenset(kept))


@pytest.mark.parametrize("path", ["", "a", "/a/", "//a", "/a/./b", "/a/../b", "/\n", "/a\0"])
def test_paths_that_are_not_clean_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        paths.clean(path, "entry.path")
    assert caught.value.violations[0][0] == "entry.path"


@given(st.text(st.sampled_from("/.ab\n\u2028\U0010fe0a\U0010feff日"), max_size=12))
def test_clean_is_what_the_names_of_the_wire_say(path: str) -> None:
    try:
        is_clean = names.clean_path(path) == path
    except names.PathError:
        is_clean = False
    if is_clean:
        assert paths.clean(path, "path") == path
    else:
        with pytest.raises(InvalidArgument):
            paths.clean(path, "path")


@pytest.mark.parametrize("length", [63, 64, 255, 256])
@pytest.mark.parametrize("letter", ["a", "日"])
def test_long_names_are_measured_in_bytes(letter: str, length: int) -> None:
    path = "/" + letter * length
    if length * len(letter.encode()) <= 255:
        assert paths.clean(path, "path") == path
    else:
        with pytest.raises(InvalidArgument):
            paths.clean(path, "path")


def test_the_url_is_made_of_bytes() -> None:
    assert paths.url(7, "/") == "nearline:///7/"
    assert paths.url(7, names.encode(b"/a b/\xe9?#%")) == "nearline:///7/a%20b/%E9%3F%23%25"


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("^/gws/data/x", Hint("/gws/data/", True)),
        (r"^/gws/v1\.2/.*\.nc$", Hint("/gws/v1.2/", True)),
        ("^/gws/data*", Hint("/gws/", True)),
        ("^/gws/a?/b", Hint("/gws/", True)),
        ("^/gws/(a|b)/", None),
        ("^/gws/[ab]/c", Hint("/gws/", True)),
        ("^/gws/a{2}/c", Hint("/gws/", True)),
        ("member-0007/", Hint("member-0007/", False)),
        ("x/y.*long/er/z", Hint("long/er/", False)),
        (r"\.nc$", None),
        ("a/b|c/d", None),
        ("(?i)a/b", None),
        ("***=a/b", None),
        (r"\d/a/b", None),
        ("a+/b", Hint("/", False)),
        ("^", None),
        ("/*", None),
        ("^.*/a/b", Hint("/a/", False)),
    ],
)
def test_what_a_pattern_demands_of_the_directory(pattern: str, hint: Hint | None) -> None:
    assert paths.directory_hint(pattern) == hint


pieces = st.sampled_from(
    ["/", "a", "b/", "/c", ".", "*", "?", "+", r"\.", "^", "$", "[ab]", "(a)", "a{1,2}", "|", r"\w"]
)


@given(st.lists(pieces, min_size=1, max_size=8).map("".join), clean_paths)
def test_a_demand_is_never_more_than_the_pattern_needs(pattern: str, path: str) -> None:
    try:
        matches = re.search(pattern, path) is not None
    except re.error:
        return
    hint = paths.directory_hint(pattern)
    if matches and hint is not None:
        directory = paths.split(path)[0]
        assert directory.startswith(hint.text) if hint.anchored else hint.text in directory


@given(
    st.lists(pieces, min_size=1, max_size=8).map("".join),
    st.lists(st.sampled_from(["a", "b", "c", ".", "ab", "aa"]), min_size=1, max_size=5),
)
def test_a_demand_holds_for_paths_that_patterns_like_to_match(
    pattern: str, parts: list[str]
) -> None:
    test_a_demand_is_never_more_than_the_pattern_needs.hypothesis.inner_test(  # type: ignore[attr-defined]
        pattern, "/" + "/".join(parts)
    )
