"""Configuration of the monitor. Every number that decides something in the ledger is here."""

from services.kit.config import Count, DatabaseConfig, LogConfig, Seconds, Section, ServerConfig
from services.monitor.rules import Limits


class LedgerConfig(Section, frozen=True):
    """How long leases, retries and finished work last, and how much a user may have running."""

    heartbeat_seconds: Seconds = 3.0
    """Workers give a sign of life this often."""
    lease_seconds: Seconds = 15.0
    """Leases end this long after their worker's last sign of life."""
    retry_first_seconds: Seconds = 1.0
    """Wait before the first retry; doubles with every attempt."""
    retry_most_seconds: Seconds = 300.0
    """Longest wait between two attempts."""
    give_up_after_seconds: Seconds = 7 * 86400.0
    """A task that fails all this time is given up."""
    most_lost_leases: Count = 10
    """A task that lost this many workers is given up."""
    cancel_patience_seconds: Seconds = 60.0
    """A worker that does not let go of cancelled work for this long is no longer waited for."""
    running_per_user: Count = 10_000
    """Transactions of one user that may run at once; more are refused for a while."""
    running_per_group: Count = 50_000
    """The same for one group."""
    tasks_per_user: Count = 1_000_000
    """Tasks of one user that may wait or run; further requests are refused for a while."""
    tasks_per_group: Count = 5_000_000
    """The same for one group."""
    paths_per_user: Count = 20_000_000
    """Paths of one user's requests that may be on their way in."""
    paths_per_group: Count = 100_000_000
    """The same for one group."""
    busy_retry_seconds: Seconds = 30.0
    """When somebody with too much running should try again."""
    submission_seconds: Seconds = 86400.0
    """Requests that were begun and not finished are dropped after this."""
    keep_tasks_seconds: Seconds = 7 * 86400.0
    """Tasks of finished transactions can be listed for this long."""
    poll_seconds: Seconds = 0.5
    """How often delayed work is looked at, and work whose notification was lost."""
    sweep_seconds: Seconds = 1.0
    """How often lost workers are looked for."""
    housekeeping_seconds: Seconds = 60.0
    """How often old rows are removed."""

    @property
    def limits(self) -> Limits:
        """The numbers that the rules take."""
        return Limits(
            retry_first=self.retry_first_seconds,
            retry_most=self.retry_most_seconds,
            give_up_after=self.give_up_after_seconds,
            most_lost=self.most_lost_leases,
        )


class Config(Section, frozen=True):
    """The whole file."""

    server: ServerConfig
    database: DatabaseConfig
    ledger: LedgerConfig = LedgerConfig()
    log: LogConfig = LogConfig()
