"""Adding up where files are."""

from __future__ import annotations

from deploy.local.demo.whereabouts import Whereabouts, count


def _file(size: int, **copies: str) -> dict[str, object]:
    locations = [{"tier": tier, "state": state} for tier, state in copies.items()]
    return {"size": str(size), "locations": locations}


def test_copies_are_counted_by_tier_and_state() -> None:
    files = [
        _file(1, CACHE="STORED"),
        _file(2, CACHE="STORED", TAPE="WRITTEN"),
        _file(4, CACHE="STORED", TAPE="SAFE"),
        _file(8, TAPE="SAFE"),
        _file(16),
    ]
    assert count(files) == Whereabouts(
        files=5, bytes=31, in_cache=3, on_tape=3, safe=2, on_tape_only=1
    )
