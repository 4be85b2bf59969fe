"""Calls that outlive a token, a restart of the service and a break of the connection."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import grpc

from nearline_client import auth_errors
from nearline_client.errors import NotLoggedIn, ServiceError
from nearline_client.status import from_rpc_error

Q = TypeVar("Q")
R = TypeVar("R")

Notice = Callable[[ServiceError], None]
"""Told why a call is interrupted, before it goes on by itself."""

Busy = Callable[[ServiceError, float], None]
"""Told why the service has no room for a request, and after how many seconds it is made again."""


class TokenSource(Protocol):
    """Where access tokens come from; both methods may raise an `auth_errors.AuthError`."""

    def access_token(self) -> str:
        """A token that is good for a call now."""
        ...

    def renew(self, rejected: str | None = None) -> str:
        """Another token than `rejected`, which the service did not accept."""
        ...


@dataclass(frozen=True)
class FixedToken:
    """A token that somebody else takes care of."""

    token: str

    def access_token(self) -> str:
        """The token."""
        return self.token

    def renew(self, rejected: str | None = None) -> str:
        """Raises NotLoggedIn: there is no other."""
        raise auth_errors.NotLoggedIn("the service did not accept the token; give a new one")


@dataclass(frozen=True)
class Timing:
    """How long to wait, in seconds."""

    #: For the answer to a single question.
    deadline: float = 30.0
    #: For a stream of answers, which is taken up again as long as it gets on.
    stream_deadline: float = 600.0
    #: Until a service that never answered is given up.
    opening: float = 15.0
    #: Until a service is given up that broke off an upload of paths or a list.
    interrupted: float = 120.0
    #: Until a service is given up that broke off a watch.
    watching: float = 1800.0
    #: Until a request is given up that the service has no room for.
    busy: float = 1800.0
    #: First pause between two attempts; each further one is twice as long.
    pause: float = 0.2
    #: Longest pause.
    longest_pause: float = 5.0


class Attempts:
    """Decides after each failed attempt of one call whether and when there is another."""

    def __init__(self, caller: Caller, patience: float, notice: Notice | None) -> None:
        self._caller = caller
        self._patience = patience
        self._notice = notice
        self._fresh = False
        self._renewed = False
        self._failures = 0
        self._trouble_since = 0.0
        self._token = ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What identifies the caller. Raises NotLoggedIn, and ServiceError without a provider."""
        self._token = _token(self._caller.tokens.access_token)
        return (("authorization", f"Bearer {self._token}"),)

    def progressed(self) -> None:
        """Something new was received: patience starts anew."""
        self._caller.reached = self._fresh = True
        self._renewed = False
        self._failures = 0

    def recover(self, error: ServiceError) -> None:
        """Return when it is time for the next attempt. Raises `error` when there is none."""
        fresh, self._fresh = self._fresh, False
        if isinstance(error, NotLoggedIn) and not self._renewed:
            self._renew(error)
        elif error.code == "DEADLINE_EXCEEDED" and fresh:
            return
        elif _is_transient(error):
            self._pause(error)
        else:
            raise error

    def _renew(self, error: NotLoggedIn) -> None:
        self._renewed = True
        try:
            _token(lambda: self._caller.tokens.renew(self._token))
        except NotLoggedIn as final:
            # The service knows why, the login knows what to do.
            raise NotLoggedIn(
                error.code, error.reason, error.message, advice=final.message
            ) from error

    def _pause(self, error: ServiceError) -> None:
        now = time.monotonic()
        if self._failures == 0:
            self._trouble_since = now
        timing = self._caller.timing
        backoff = min(timing.longest_pause, timing.pause * 2.0**self._failures)
        self._failures += 1
        pause = max(backoff * random.uniform(0.5, 1.0), error.retry_after or 0.0)
        if now + pause - self._trouble_since > self._patience_with(error):
            raise error
        self._tell(error, pause)
        time.sleep(pause)

    def _patience_with(self, error: ServiceError) -> float:
        if error.code == "RESOURCE_EXHAUSTED":
            return self._caller.timing.busy
        return self._patience if self._caller.reached else self._caller.timing.opening

    def _tell(self, error: ServiceError, pause: float) -> None:
        if error.code == "RESOURCE_EXHAUSTED" and self._caller.on_busy:
            self._caller.on_busy(error, pause)
        elif self._notice:
            self._notice(error)


class Caller:
    """Makes the calls of one client."""

    def __init__(
        self, server: str, tokens: TokenSource, timing: Timing, on_busy: Busy | None = None
    ) -> None:
        """`server` is the URL as errors are to show it."""
        self.on_busy = on_busy
        self.server = server
        self.tokens = tokens
        self.timing = timing
        #: Whether the service ever answered: a wrong URL is to be noticed soon.
        self.reached = False

    def attempts(self, patience: float, notice: Notice | None = None) -> Attempts:
        """The attempts of one call that may be interrupted for `patience` seconds."""
        return Attempts(self, patience, notice)

    def error(self, error: grpc.RpcError) -> ServiceError:
        """What a failed call means."""
        return from_rpc_error(error, self.server)

    def unary(self, method: grpc.UnaryUnaryMultiCallable[Q, R], request: Q) -> R:
        """The answer to a request that may be repeated. Raises ServiceError."""
        attempts = self.attempts(self.timing.opening)
        while True:
            metadata = attempts.metadata()
            try:
                return method(request, timeout=self.timing.deadline, metadata=metadata)
            except grpc.RpcError as error:
                attempts.recover(self.error(error))

    def collect(self, method: grpc.UnaryStreamMultiCallable[Q, R], request: Q) -> list[R]:
        """All of a few answers; a stream without cursor that breaks off is asked for again."""
        attempts = self.attempts(self.timing.opening)
        while True:
            metadata = attempts.metadata()
            try:
                return [*method(request, timeout=self.timing.deadline, metadata=metadata)]
            except grpc.RpcError as error:
                attempts.recover(self.error(error))

    def stream(
        self,
        method: grpc.UnaryStreamMultiCallable[Q, R],
        request: Q,
        advance: Callable[[Q, R], bool],
        *,
        attempts: Attempts | None = None,
        timeout: Callable[[], float] | None = None,
    ) -> Iterator[R]:
        """The answers to `request`, which goes on where it broke off. Raises ServiceError.

        `advance` changes the request so that a new attempt goes on behind the answer, and says
        whether there is anything behind it. `timeout` gives the deadline of each attempt.
        """
        attempts = attempts or self.attempts(self.timing.interrupted)
        while True:
            limit = timeout() if timeout else self.timing.stream_deadline
            call = method(request, timeout=limit, metadata=attempts.metadata())
            try:
                for answer in call:
                    attempts.progressed()
                    more = advance(request, answer)
                    yield answer
                    if not more:
                        return
                return
            except grpc.RpcError as error:
                attempts.recover(self.error(error))
            finally:
                call.cancel()


def _is_transient(error: ServiceError) -> bool:
    # RESOURCE_EXHAUSTED is a full quota, unless the service says when to come back.
    return error.code in ("UNAVAILABLE", "ABORTED") or (
        error.code == "RESOURCE_EXHAUSTED" and error.retry_after is not None
    )


def _token(get: Callable[[], str]) -> str:
    """A token; what is wrong with the login becomes the one kind of error of the client."""
    try:
        return get()
    except auth_errors.IssuerUnavailable as error:
        raise ServiceError("UNAVAILABLE", "ISSUER_UNAVAILABLE", str(error)) from error
    except auth_errors.AuthError as error:
        raise NotLoggedIn("UNAUTHENTICATED", "NO_TOKEN", str(error)) from error
