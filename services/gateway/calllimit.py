"""No user takes up the gateway: the interceptor that bounds the calls of each at a time."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from services.kit.errors import ResourceExhausted
from services.kit.identity import require_identity
from services.kit.interceptor import Continuation, Details, Handler, wrapped

# Apart, so that those refused do not all come back at once.
_COME_AGAIN_SECONDS = (1.0, 3.0)


class CallLimit(grpc.aio.ServerInterceptor):
    """Runs inside of the authentication, which says whose call it is."""

    def __init__(self, most: int) -> None:
        """``most`` calls of one user run at a time."""
        self._most = most
        self._running: Counter[str] = Counter()

    async def intercept_service(self, continuation: Continuation, details: Details) -> Any:
        """Count the call for as long as it runs; ResourceExhausted when it is one too many."""
        user = require_identity().user
        handler: Handler | None = await continuation(details)
        if handler is None:
            return None
        return wrapped(handler, lambda context, call: self._run(user, call))

    async def _run(self, user: str, call: Callable[[], Awaitable[Any]]) -> Any:
        if self._running[user] >= self._most:
            raise ResourceExhausted(
                "TOO_MANY_CALLS",
                f"{self._most} calls of {user} are running; end some, or try again in a moment",
                retry_after=random.uniform(*_COME_AGAIN_SECONDS),
                limit=self._most,
            )
        self._running[user] += 1
        try:
            return await call()
        finally:
            self._running[user] -= 1
            if not self._running[user]:
                del self._running[user]
