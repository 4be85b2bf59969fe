"""The window over a list of paths, compared with the list itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nearline_client.submit import MOST_PATHS, WINDOW, Backlog


@given(st.integers(0, 12 * MOST_PATHS), st.lists(st.tuples(st.booleans(), st.integers(0, 5000))))
def test_the_service_ends_up_with_the_list(length: int, events: list[tuple[bool, int]]) -> None:
    paths = [f"/{n}" for n in range(length)]
    backlog = Backlog(iter(paths))
    stored: list[str] = []
    backlog.resume(0)
    for breaks, count in [*events, *[(False, length)] * 20]:
        sent = []
        while batch := backlog.next_batch():
            sent.append(batch)
        assert len(sent) <= WINDOW
        # The service stores some of what is on its way, perhaps half of a batch, and then answers.
        for batch in sent:
            if batch.first == len(stored) and count:
                taken = batch.paths[:count] if breaks else batch.paths
                stored.extend(taken)
                count -= len(taken) if breaks else 0
        if breaks or len(stored) < length:
            backlog.resume(len(stored))
        else:
            backlog.acknowledge(len(stored))
    assert stored == paths
    assert not backlog.is_full
    assert backlog.next_batch() is None


def test_paths_of_an_earlier_process_are_skipped() -> None:
    backlog = Backlog(f"/{n}" for n in range(10))
    backlog.resume(7)
    batch = backlog.next_batch()
    assert batch is not None
    assert (batch.first, list(batch.paths)) == (7, ["/7", "/8", "/9"])
