"""RESOLVE: which files a GET or STAGE means, and which tasks bring them."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from nearline.catalog.v1 import catalog_pb2 as catalog
from nearline.type.v1 import storage_pb2, task_pb2, transaction_pb2
from services.kit import spans
from services.kit.catalogclient import in_batches
from services.kit.errors import DeadlineExceeded, InvalidArgument
from services.kit.faults import no_copy
from services.kit.jobs import Done, Job, JobContext
from services.transfer.context import Context
from services.transfer.planning import ReadPlan

_BATCH = 1000

NOT_FOUND = (
    "NOT_FOUND",
    "nothing is stored under this path where the request looks; `nlds find` shows what is",
)


def resolve(context: Context, job: Job, ctx: JobContext) -> Done:
    """Plan the chunk's paths, or the files of the payload whose cache copy was lost."""
    run = _Run(context, job, ctx)
    task = task_pb2.FilesTask.FromString(job.payload)
    if task.files:
        return run.again(task)
    return run.paths(exact=task.exact)


def _bounded(
    answers: Iterator[catalog.ResolveFilesResponse],
) -> Iterator[catalog.ResolveFilesResponse]:
    """As ``answers``; a pattern that is too wide to search stays so, and fails for good."""
    try:
        yield from answers
    except DeadlineExceeded as error:
        if error.reason != "SEARCH_TOO_WIDE":
            raise
        raise InvalidArgument(error.reason, error.message) from error


class _Run:
    def __init__(self, context: Context, job: Job, ctx: JobContext) -> None:
        self._context, self._job, self._ctx = context, job, ctx
        self._options = task_pb2.GetOptions.FromString(job.transaction.options)
        self._download = job.transaction.action == transaction_pb2.Transaction.GET
        pack = context.config.pack
        self._plan = ReadPlan(
            download=self._download,
            most_files=pack.pack_files,
            most_bytes=2 * pack.pack_bytes,
        )
        self._files = self._bytes = 0
        self._pinned: list[int] = []
        self._lost: list[storage_pb2.StoredFile] = []

    def paths(self, *, exact: bool) -> Done:
        """``exact``: the chunk holds paths of files that an earlier attempt met.

        What failed before in a retry of patterns is a path or a pattern: both are tried.
        """
        batches = self._context.ledger.read(self._job)
        is_mixed = self._options.regex and bool(self._job.transaction.retry_of)
        if exact or is_mixed:
            batches = in_batches(self._look_up(batches, exact=True), _BATCH)
        if not exact:
            batches = in_batches(self._look_up(batches, regex=self._options.regex), _BATCH)
        for unmatched in batches:
            self._ctx.failures((path, *NOT_FOUND) for path in unmatched)
            self._files += len(unmatched)
        return self._done(files_total=self._files, bytes_total=self._bytes)

    def _look_up(
        self, batches: Iterable[Sequence[str]], *, regex: bool = False, exact: bool = False
    ) -> Iterator[str]:
        """Plan what ``batches`` mean; the paths that mean nothing."""
        header = catalog.ResolveFilesRequest.Header(
            holdings=self._options.holdings, regex=regex, exact=exact
        )
        for answer in _bounded(self._context.catalog.resolve(header, batches)):
            self._ctx.check()
            for file in answer.files:
                self._add(file)
            yield from answer.unmatched

    def again(self, task: task_pb2.FilesTask) -> Done:
        """These files were counted when they were met first."""
        self._ctx.files_at_stake = spans.count(task.files)
        for file in self._context.catalog.files(task.files):
            self._add(file)
        return self._done()

    def _add(self, file: storage_pb2.StoredFile) -> None:
        self._files += 1
        self._bytes += file.attributes.size
        if self._options.pin_days:
            self._pinned.append(file.id)
        if not self._plan.add(file):
            self._lost.append(file)
            if len(self._lost) == _BATCH:
                self._fail_lost()

    def _fail_lost(self) -> None:
        self._ctx.failures(no_copy(self._context.catalog, self._lost))
        self._lost = []

    def _done(self, files_total: int = 0, bytes_total: int = 0) -> Done:
        self._pin()
        self._fail_lost()
        at_hand = [] if self._download else self._plan.at_hand
        # A directory has nothing to stage.
        idle = 0 if self._download else len(self._plan.directories)
        return Done(
            files_total=files_total,
            bytes_total=bytes_total,
            files_done=idle + sum(spans.count(task.files) for task in at_hand),
            bytes_done=sum(task.bytes for task in at_hand),
            follow_ups=self._plan.tasks(),
        )

    def _pin(self) -> None:
        if self._pinned:
            request = catalog.PinFilesRequest(files=spans.to_ranges(self._pinned))
            until = datetime.now(UTC) + timedelta(days=self._options.pin_days)
            request.until.FromDatetime(until)
            self._context.catalog.pin(request)
