"""Every RPC but health and reflection is made by somebody: the interceptor that finds out who."""

from dataclasses import replace
from typing import Any

import grpc

from services.gateway.tokens import TokenVerifier, bearer_token
from services.kit import identity
from services.kit.interceptor import Continuation, Details


class Authentication(grpc.aio.ServerInterceptor):
    """Binds the identity of the token to the handler's context; streams pay nothing per message."""

    def __init__(self, verifier: TokenVerifier) -> None:
        self._verifier = verifier

    async def intercept_service(self, continuation: Continuation, details: Details) -> Any:
        """Verify the bearer token; Unauthenticated or Unavailable as the verifier says."""
        who = await self._verifier.verify(bearer_token(_authorization(details)))
        request_id = identity.current_request_id() or ""
        identity.bind(identity=replace(who, request_id=request_id))
        return await continuation(details)


def _authorization(details: Details) -> str | None:
    for key, value in details.invocation_metadata or ():
        if key == "authorization":
            return value if isinstance(value, str) else None
    return None
