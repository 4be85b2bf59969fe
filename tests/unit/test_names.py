import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nearline_client import names
from nearline_client.names import PathError

raw_names = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"x"))
awkward = st.lists(
    st.sampled_from(
        [
            b"a",
            b"\n",
            b"\r",
            b"\x1f",
            b"\x7f",
            b"\xc2\x85",
            b"\xff",
            b"\xe2\x80\xa8",
            b"\xed\xa0\x80",
        ]
        + [chr(0x10FE00 + i).encode() for i in (0, 0x41, 0xFF)]
        + ["é".encode(), "\U0010fdff".encode(), "\U0010ff00".encode(), b"\xf4\x8f", b"\xb8\x80"]
    ),
    max_size=8,
).map(b"".join)
any_name = raw_names | awkward
texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.integers(0x10FE00, 0x10FEFF).map(chr), max_size=20
)


@given(any_name)
def test_every_name_comes_back(name: bytes) -> None:
    wire = names.encode(name)
    assert names.decode(wire) == name
    assert names.to_os(wire) == os.fsdecode(name)
    assert names.from_os(os.fsdecode(name)) == wire


@given(any_name)
def test_wire_form_is_one_line_of_clean_utf8(name: bytes) -> None:
    wire = names.encode(name)
    assert len(f"<{wire}>".splitlines()) == 1
    assert "\0" not in wire
    assert wire.encode("utf-8").decode("utf-8") == wire


@given(any_name, any_name)
@example(b"\xff", chr(0x10FEFF).encode())
@example(b"\n", chr(0x10FE0A).encode())
def test_injective(one: bytes, two: bytes) -> None:
    assert (names.encode(one) == names.encode(two)) == (one == two)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Co"]), max_size=30))
def test_plain_text_stays_itself(text: str) -> None:
    assert names.encode(text.encode()) == text
    assert names.is_canonical(text)


@given(texts)
@example("\U0010fe41")
@example("\U0010fec3\U0010fea9")
@example("\n")
def test_canonical_is_idempotent_and_keeps_the_name(wire: str) -> None:
    if "\0" in wire or "\U0010fe00" in wire:
        assert not names.is_canonical(wire)
        return
    name = names.decode(wire)
    canonical = names.canonical(wire)
    assert names.decode(canonical) == name
    assert names.canonical(canonical) == canonical == names.encode(name)
    assert names.is_canonical(canonical)
    assert names.is_canonical(wire) == (wire == canonical)


def test_known_forms() -> None:
    assert names.encode(b"tab\there") == "tab\U0010fe09here"
    assert names.encode(b"\xc2\x85") == "\U0010fec2\U0010fe85"
    assert names.encode("naïve 日本".encode()) == "naïve 日本"
    assert names.encode(b"caf\xe9") == "caf\U0010fee9"
    assert names.canonical("\U0010fe41") == "A"


@pytest.mark.parametrize("wire", ["a\0b", "\U0010fe00"])
def test_nul_is_refused(wire: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        names.decode(wire)


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(PathError) as caught:
        names.decode("a\udcff")
    assert caught.value.reason == "NOT_UNICODE"


@pytest.mark.parametrize(
    ("given_path", "clean"),
    [
        ("/", "/"),
        ("//a///b/./c/", "/a/b/c"),
        ("/a/...", "/a/..."),
        ("/a\U0010fe2f\U0010fe2fb", "/a/b"),
        ("/x\ny", "/x\U0010fe0ay"),
        ("/" + "n" * 255, "/" + "n" * 255),
        ("/" + "/".join(["n" * 255] * 16), "/" + "/".join(["n" * 255] * 16)),
    ],
)
def test_clean_path(given_path: str, clean: str) -> None:
    assert names.clean_path(given_path) == clean
    assert names.clean_path(clean) == clean


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "EMPTY"),
        ("a/b", "NOT_ABSOLUTE"),
        ("./a", "NOT_ABSOLUTE"),
        ("/a/../b", "PARENT_REFERENCE"),
        ("/..", "PARENT_REFERENCE"),
        ("/a/\U0010fe2e.", "PARENT_REFERENCE"),
        ("/a\0", "NUL_BYTE"),
        ("/" + "é" * 128, "COMPONENT_TOO_LONG"),
        ("/" + "/".join(["n" * 255] * 16) + "/n", "PATH_TOO_LONG"),
    ],
)
def test_refused_paths_say_why(path: str, reason: str) -> None:
    with pytest.raises(PathError) as caught:
        names.clean_path(path)
    assert caught.value.reason == reason


@given(
    st.lists(any_name.filter(lambda n: b"/" not in n and n not in (b"", b".", b"..")), max_size=6)
)
def test_clean_path_keeps_clean_paths(parts: list[bytes]) -> None:
    wire = names.encode(b"/" + b"/".join(parts))
    assert names.clean_path(wire) == wire


def test_clean_path_bytes_refuses_nul() -> None:
    with pytest.raises(PathError) as caught:
        names.clean_path_bytes(b"/a\0b")
    assert caught.value.reason == "NUL_BYTE"
