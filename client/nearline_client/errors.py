"""What a call of the client can raise. Imports no gRPC, which is slow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class ServiceError(Exception):
    """The service refused a request, failed or could not be reached.

    `code` is the name of the gRPC status ("NOT_FOUND"), `reason` an UPPER_SNAKE constant to branch
    on, `message` says what and why, `advice` what to do where the message does not say it itself,
    `retry_after` the seconds after which a repeat may succeed (None: a repeat is of no use),
    `violations` pairs of (field, what is wrong with it), `metadata` the values spoken of.
    """

    def __init__(
        self,
        code: str,
        reason: str,
        message: str,
        *,
        advice: str = "",
        retry_after: float | None = None,
        violations: Iterable[tuple[str, str]] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.advice = advice
        self.retry_after = retry_after
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        text = self.message
        details = [f"{field}: {what}" for field, what in self.violations if what not in text]
        if details:
            text = f"{text} ({', '.join(details)})"
        return f"{text.rstrip('.')}; {self.advice}" if self.advice else text


class NotLoggedIn(ServiceError):
    """There is no token, or the service does not accept it: a person has to log in."""


class NotAllowed(ServiceError):
    """The caller is known and may not do this."""
