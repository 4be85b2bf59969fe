"""Ways to break each guarantee of docs/guarantees.md, and the test that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BOOK = "services/monitor/book.py"
_RULES = "services/monitor/rules.py"
_REMOVAL = "services/catalog/removal.py"
_SEAL = "services/catalog/seal.py"
_RECONCILE = "services/tape/reconcile.py"
_DOWNLOAD = "services/transfer/download.py"
_TEST_BOOK = "tests/unit/monitor/test_book.py"
_TEST_RETRY = "tests/service/monitor/test_retry.py"
_TEST_COPIES = "tests/service/tape/test_copies.py"
_TEST_BLOBS = "tests/service/catalog/test_blobs.py"


@dataclass(frozen=True)
class Mutation:
    """One change of one place in the code: ``old`` occurs exactly once in ``file``."""

    guarantee: str
    """Letter of the guarantee that it breaks."""
    name: str
    file: str
    old: str
    new: str
    test: str
    """Arguments of pytest."""

    def apply(self, root: Path) -> None:
        """Make the change below ``root``. Raises ValueError when there is no such place."""
        path = root / self.file
        before = path.read_text()
        if before.count(self.old) != 1:
            raise ValueError(f"{self.name}: its text occurs {before.count(self.old)} times")
        path.write_text(before.replace(self.old, self.new))


MUTATIONS = (
    Mutation(
        "a", "failed files are not counted", _BOOK,
        "book.files_failed += lost", "book.files_failed += 0",
        f"{_TEST_BOOK}::test_transient_failures_wait_and_at_last_give_up",
    ),
    Mutation(
        "a", "the work that comes last is never released", _BOOK,
        "return self.blocked > 0 and not self.open_by_kind.total()", "return False",
        "tests/service/monitor/test_leases.py::test_last_tasks_run_when_nothing_else_is_open",
    ),
    Mutation(
        "a", "a result is believed although its failures did not arrive", _BOOK,
        "elif body.files_failed != failures_stored:", "elif False:",
        f"{_TEST_BOOK}::test_a_result_whose_failures_got_lost_is_tried_again",
    ),
    Mutation(
        "a", "a retry counts again what had failed before", "services/monitor/retries.py",
        "WHEN files > 0 THEN files\n", "WHEN files > 0 THEN files_failed\n",
        f"{_TEST_RETRY}::test_files_that_failed_before_their_task_did_are_counted_once",
    ),
    Mutation(
        "b", "the last copy of a file may be taken away", _REMOVAL,
        "        _keep_last_copies(connection, numbers)\n", "",
        f"{_TEST_BLOBS}::test_the_last_copy_cannot_be_taken_away",
    ),
    Mutation(
        "b", "other bytes count as a copy of a stored file", _SEAL,
        "WHEN m.length = f.size AND m.digest IS NOT DISTINCT FROM f.digest THEN", "WHEN true THEN",
        f"{_TEST_BLOBS}::test_other_bytes_are_never_taken_for_a_stored_file",
    ),
    Mutation(
        "b", "bytes that a recall reads are not checked", "services/tape/recall.py",
        "    return bool(file.digest) and file.digest != digest", "    return False",
        f"{_TEST_COPIES}::test_a_bit_that_turned_over_on_tape_costs_one_file",
    ),
    Mutation(
        "b", "an object is given up while the store reads nothing at all", "services/kit/faults.py",
        "    if not any(can_read(cache, other) for other in others):\n", "    if False:\n",
        "tests/service/transfer/test_download.py",
    ),
    Mutation(
        "c", "a tape copy that nobody confirmed is enough to evict", _REMOVAL,
        "WHERE t.file_id = l.file_id AND t.tier = {TAPE} AND b.state = {SAFE}) = 0",
        "WHERE t.file_id = l.file_id AND t.tier = {TAPE}) = 0",
        f"{_TEST_BLOBS}::test_only_what_is_safe_on_tape_is_evicted",
    ),
    Mutation(
        "c", "what is written counts as safe before it is on tape", "services/tape/archive.py",
        "    if state.on_tape:\n        with suppress",
        "    if state.exists:\n        with suppress",
        f"{_TEST_COPIES}::test_what_is_written_is_safe_only_when_it_is_on_tape",
    ),
    Mutation(
        "d", "a get delivers bytes that do not match", _DOWNLOAD,
        "                if digest.digest() != file.digest:\n"
        "                    raise Damaged\n", "",
        "tests/service/transfer/test_download.py",
    ),
    Mutation(
        "d", "a get does not check small files", _DOWNLOAD,
        "if hashlib.sha256(content).digest() == piece.file.digest:", "if True:",
        "tests/service/transfer/test_download.py",
    ),
    Mutation(
        "d", "a get that stops leaves half a file", "services/transfer/userfs.py",
        "        self.abort()\n\n    def write(", "        pass\n\n    def write(",
        "tests/service/transfer/test_userfs.py -k nothing_is_left_without_commit",
    ),
    Mutation(
        "e", "a repeated result is refused", _RULES,
        "        return Verdict.REPEAT\n", "        return Verdict.LATE\n",
        "tests/unit/monitor/test_rules.py",
    ),
    Mutation(
        "e", "a repeated seal counts again", _SEAL,
        "if rules.seal_is_repeat(seal, blob.state, blob.size, blob.adler32, answered):",
        "if False:",
        f"{_TEST_BLOBS}::test_a_repeated_seal_answers_the_same_and_changes_nothing",
    ),
    Mutation(
        "e", "a claim that is over is answered again", "services/catalog/archive.py",
        "if earlier.state != WRITING:", "if False:",
        f"{_TEST_BLOBS}::test_a_claim_that_is_over_is_not_answered_again",
    ),
    Mutation(
        "f", "any lease of a task will do", _BOOK,
        "current=task.state == TaskProto.LEASED and task.token == report.token,",
        "current=task.state == TaskProto.LEASED,",
        "tests/service/monitor/test_leases.py::test_a_stale_token_changes_nothing",
    ),
    Mutation(
        "f", "a late report counts as recorded", _RULES,
        "if token == ended_token and ended != Ending.LOST", "if ended != Ending.LOST",
        "tests/unit/monitor/test_rules.py",
    ),
    Mutation(
        "g", "cancelled work goes on after its lease", _BOOK,
        "elif book is not None and rules.is_cancelled(task.kind, cancelled=book.cancelled):",
        "elif False:",
        f"{_TEST_BOOK}::test_cancelled_work_ends_however_the_lease_ends",
    ),
    Mutation(
        "g", "work that waits for a time is not cancelled", "services/monitor/transactions.py",
        "AND state IN (1, 3, 4) AND kind", "AND state IN (1, 4) AND kind",
        "tests/service/monitor/test_failing.py::test_cancel_stops_work_in_every_state",
    ),
    Mutation(
        "g", "what was cancelled while it was read is written", _DOWNLOAD,
        "                self._ctx.check()  # Reading may have taken long.\n", "",
        "tests/service/transfer/test_download.py",
    ),
    Mutation(
        "g", "cancelled work leads to more work", _BOOK,
        "follow_ups = () if book.cancelled else body.follow_ups", "follow_ups = body.follow_ups",
        f"{_TEST_BOOK}::test_work_done_in_spite_of_a_cancel_counts_but_leads_nowhere",
    ),
    Mutation(
        "g", "nobody tidies up after cancelled work", _RULES,
        "return kind in WRITING and lost > 0 and state in (Task.FAILED, Task.CANCELLED)",
        "return kind in WRITING and lost > 0 and state == Task.FAILED",
        f"{_TEST_BOOK}::test_what_the_dead_left_of_cancelled_work_is_tidied_up",
    ),
    Mutation(
        "h", "what the catalog owns counts as an orphan", _RECONCILE,
        "    if state == Blob.REMOVED:\n        return",
        "    if state is not None:\n        return",
        "tests/service/tape/test_reconcile.py",
    ),
    Mutation(
        "h", "what is young counts as an orphan", _RECONCILE,
        "(one for one in stored if one.age >= self._options.grace)", "stored",
        "tests/service/tape/test_reconcile.py",
    ),
    Mutation(
        "h", "what was removed is never cleaned up", _RECONCILE,
        "                    if removable and not self._options.dry_run:\n"
        "                        one.remove()\n", "",
        "tests/service/tape/test_reconcile.py",
    ),
    Mutation(
        "i", "copies that go stay in the usage", _REMOVAL,
        "(-row.files, -row.bytes))", "(0, 0))",
        "tests/service/catalog/test_model.py",
    ),
)  # fmt: skip
