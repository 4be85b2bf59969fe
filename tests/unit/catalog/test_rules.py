"""Steps of blobs, seals, tags, quotas, cursors and ranges as pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearline.type.v1.storage_pb2 import Blob, HoldingSelector, IdRange
from services.catalog import blobs, cursors, ranges, rules
from services.catalog.rules import CACHE, TAPE, Seal
from services.kit.errors import FailedPrecondition, InvalidArgument

LIVES = {
    CACHE: [
        (Blob.WRITING, Blob.REMOVED),
        (Blob.WRITING, Blob.REMOVING),
        (Blob.STORED, Blob.REMOVING),
        (Blob.STORED, Blob.LOST),
        (Blob.REMOVING, Blob.REMOVED),
        (Blob.LOST, Blob.REMOVING),
        (Blob.LOST, Blob.REMOVED),
    ],
    TAPE: [
        (Blob.WRITING, Blob.REMOVED),
        (Blob.WRITING, Blob.REMOVING),
        (Blob.WRITTEN, Blob.SAFE),
        (Blob.WRITTEN, Blob.REMOVING),
        (Blob.WRITTEN, Blob.LOST),
        (Blob.SAFE, Blob.REMOVING),
        (Blob.SAFE, Blob.LOST),
        (Blob.REMOVING, Blob.REMOVED),
        (Blob.LOST, Blob.REMOVING),
        (Blob.LOST, Blob.REMOVED),
    ],
}
STATES = {
    CACHE: [Blob.WRITING, Blob.STORED, Blob.REMOVING, Blob.REMOVED, Blob.LOST],
    TAPE: [Blob.WRITING, Blob.WRITTEN, Blob.SAFE, Blob.REMOVING, Blob.REMOVED, Blob.LOST],
}


@pytest.mark.parametrize("tier", [CACHE, TAPE])
@pytest.mark.parametrize("wanted", Blob.State.values())
def test_blobs_take_the_steps_of_their_life_only(tier: int, wanted: int) -> None:
    for present in STATES[tier]:
        already = present == wanted or (present, wanted) == (Blob.SAFE, Blob.WRITTEN)
        if already or (present, wanted) in LIVES[tier]:
            assert rules.step_needed(1, tier, present, wanted) != already
        else:
            with pytest.raises(FailedPrecondition, match="blob 1 is"):
                rules.step_needed(1, tier, present, wanted)


def test_a_seal_fits_the_tier() -> None:
    rules.check_seal(Seal(1, 10, 0, Blob.STORED), CACHE)
    rules.check_seal(Seal(1, 10, 5, Blob.SAFE), TAPE)
    for seal, tier in [
        (Seal(1, 10, 0, Blob.SAFE), CACHE),
        (Seal(1, 10, 5, Blob.STORED), CACHE),
        (Seal(1, 10, 5, Blob.STORED), TAPE),
        (Seal(1, 10, 5, Blob.LOST), TAPE),
    ]:
        with pytest.raises(InvalidArgument):
            rules.check_seal(seal, tier)


def test_a_seal_is_a_repeat_when_it_says_the_same() -> None:
    seal = Seal(1, 10, 5, Blob.WRITTEN)
    assert not rules.seal_is_repeat(seal, Blob.WRITING, 0, 0, answered=False)
    assert rules.seal_is_repeat(seal, Blob.SAFE, 10, 5, answered=True)
    assert rules.seal_is_repeat(seal, Blob.REMOVED, 10, 5, answered=True)
    for size, adler, answered in [(11, 5, True), (10, 6, True), (10, 5, False)]:
        with pytest.raises(FailedPrecondition):
            rules.seal_is_repeat(seal, Blob.REMOVED, size, adler, answered)


tags = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from("12"))


@given(tags, tags)
def test_merging_never_changes_a_tag_and_warns_of_each_other(
    present: dict[str, str], wanted: dict[str, str]
) -> None:
    merged, warnings = rules.merge_tags(present, wanted)
    assert merged == {**wanted, **present}
    assert len(warnings) == sum(present.get(key, value) != value for key, value in wanted.items())


@given(tags, tags, st.lists(st.sampled_from("abcdef")))
def test_changing_sets_and_deletes(
    present: dict[str, str], wanted: dict[str, str], delete: list[str]
) -> None:
    changed = rules.change_tags(present, wanted, delete)
    assert wanted.items() <= changed.items()
    assert changed.keys() == (present.keys() - set(delete)) | wanted.keys()


@given(
    st.lists(st.integers(0, 20)),
    st.none() | st.integers(-5, 10),
    st.none() | st.integers(-20, 100),
)
def test_what_fits_never_passes_the_room_and_wastes_none(
    sizes: list[int], files: int | None, size: int | None
) -> None:
    verdicts = rules.fits(sizes, files, size)
    used_files = used_bytes = 0
    for wanted, fit in zip(sizes, verdicts, strict=True):
        room = (files is None or used_files + 1 <= files) and (
            size is None or used_bytes + wanted <= size
        )
        assert fit == room
        used_files, used_bytes = used_files + fit, used_bytes + wanted * fit


SELECTOR = HoldingSelector(groups=["g"])


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.booleans())
def test_a_cursor_comes_back_for_the_same_question_only(
    holding: int, file: int, descending: bool
) -> None:
    asked = cursors.fingerprint(SELECTOR, descending)
    cursor = cursors.encode(asked, holding, file)
    assert cursors.decode(cursor, asked) == (holding, file)
    for other in (
        cursors.fingerprint(SELECTOR, not descending),
        cursors.fingerprint(HoldingSelector(groups=["h"]), descending),
    ):
        with pytest.raises(InvalidArgument):
            cursors.decode(cursor, other)
    assert cursors.decode("", asked) is None


@given(st.text(min_size=1))
def test_made_up_cursors_are_refused(cursor: str) -> None:
    with pytest.raises(InvalidArgument):
        cursors.decode(cursor, cursors.fingerprint(SELECTOR, False))


id_ranges = st.lists(
    st.builds(IdRange, first=st.integers(1, 60), count=st.integers(1, 12)), max_size=8
)


@given(id_ranges, st.integers(1, 7))
def test_ranges_are_merged_and_cut_without_loss(wanted: list[IdRange], size: int) -> None:
    expected = sorted({r.first + n for r in wanted for n in range(r.count)})
    merged = ranges.merged(wanted, "files")
    numbers = [n for first, last in merged for n in range(first, last + 1)]
    assert numbers == expected
    pieces = list(ranges.pieces(merged, size))
    sizes = [sum(last - first + 1 for first, last in piece) for piece in pieces]
    cut = [n for piece in pieces for first, last in piece for n in range(first, last + 1)]
    assert cut == expected
    assert all(count == size for count in sizes[:-1])


@pytest.mark.parametrize("bad", [(0, 1), (-1, 5), (1, 0), (1, -1), (1, 2**40)])
def test_bad_ranges_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(InvalidArgument):
        ranges.merged([IdRange(first=bad[0], count=bad[1])], "files")


@given(st.lists(st.integers(0, 3000), max_size=30))
def test_windows_hold_a_page_or_one_large_blob(sizes: list[int]) -> None:
    known = dict(enumerate(sizes))
    windows = blobs.cut(known, known)
    assert [blob for window in windows for blob in window] == list(known)
    for window in windows:
        assert len(window) == 1 or sum(max(1, known[blob]) for blob in window) <= blobs.PAGE
