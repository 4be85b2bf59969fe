"""What surrounds every RPC of a server: observation, error encoding, peer and identity checks."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from inspect import isawaitable
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from services.kit import errors, identity
from services.kit.channel import bind_deadline
from services.kit.errors import (
    Internal,
    NearlineError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
)
from services.kit.telemetry import RpcRecord

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Details: TypeAlias = grpc.HandlerCallDetails
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[Details], Awaitable[Handler | None]]"

# Apart, so that those refused do not all come back at once.
_COME_AGAIN_SECONDS = (0.5, 2.0)

_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")


def is_open(method: str) -> bool:
    """Whether anyone may call ``method``: health checks and reflection."""
    return method.startswith(_OPEN)


class AllowList:
    """Which mesh member may call which RPC."""

    def __init__(self, peers: Mapping[str, Sequence[str]]) -> None:
        """``peers`` as in :class:`services.kit.config.ServerConfig`."""
        self._peers = {peer: frozenset(rpcs) for peer, rpcs in peers.items()}

    def check(self, peer: str | None, method: str) -> None:
        """PermissionDenied or Unauthenticated unless ``peer`` may call ``method``."""
        if peer is None:
            raise Unauthenticated(
                "PEER_UNKNOWN", "this call needs a client certificate; call with one of the mesh"
            )
        allowed = self._peers.get(peer, frozenset())
        if method not in allowed and method[: method.rfind("/")] + "/*" not in allowed:
            raise PermissionDenied(
                "PEER_NOT_ALLOWED",
                f"{peer!r} may not call {method}; add it under [server.peers] if it should",
                peer=peer,
                method=method,
            )


class Surround(grpc.aio.ServerInterceptor):
    """The outermost interceptor: observe → errors → peer and identity → handler.

    ``allow`` is None on a server whose callers are not mesh members; its own interceptors, which
    run inside of this one, decide then. They and the handlers just raise NearlineErrors.
    """

    def __init__(self, allow: AllowList | None, most: int) -> None:
        """``most`` calls run at a time; what comes beyond is told when to come again."""
        self._allow = allow
        self._most = most
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no handler runs, their ``finally`` blocks included."""
        await self._idle.wait()

    async def intercept_service(self, continuation: Continuation, details: Details) -> Any:
        """Bind the request id, then wrap the handler that the inner interceptors agree on."""
        method = str(details.method)
        sent = _metadata(details.invocation_metadata)
        _bind_request_id(sent)
        try:
            handler: Handler | None = await continuation(details)
        except Exception as error:
            handler = _refusing(error)
        if handler is None:
            return None
        return wrapped(handler, lambda context, call: self._run(method, sent, context, call))

    async def _run(
        self, method: str, sent: dict[str, Any], context: Context, call: Callable[[], Any]
    ) -> Any:
        counted = not is_open(method)
        record = RpcRecord(method, quiet=not counted)
        code, failure = grpc.StatusCode.CANCELLED, None
        self._enter(counted)
        try:
            self._shed(counted)
            self._admit(method, sent, context)
            answer = await call()
            code = grpc.StatusCode.OK
            return answer
        except grpc.aio.AbortError:
            code = _code(context)
            raise
        except Exception as error:
            failure = _as_nearline(error)
            code = failure.code
            await abort(context, failure)
        finally:
            record.end(code, failure)
            self._leave(counted)

    def _enter(self, counted: bool) -> None:
        if counted:
            self._active += 1
            self._idle.clear()

    def _leave(self, counted: bool) -> None:
        if counted:
            self._active -= 1
            if self._active == 0:
                self._idle.set()

    def _shed(self, counted: bool) -> None:
        if counted and self._active > self._most:
            raise ResourceExhausted(
                "OVERLOADED",
                "the service has as many calls as it can take; try again in a moment",
                retry_after=random.uniform(*_COME_AGAIN_SECONDS),
            )

    def _admit(self, method: str, sent: dict[str, Any], context: Context) -> None:
        bind_deadline(context.time_remaining())
        peer = _peer(context) if self._allow is not None else None
        identity.bind(peer=peer)
        if self._allow is not None and not is_open(method):
            self._allow.check(peer, method)
        _bind_identity(peer, sent.get(identity.IDENTITY_KEY))


class Guarded(grpc.aio.ServerInterceptor):
    """Runs ``inner`` for every RPC but health checks and reflection."""

    def __init__(self, inner: grpc.aio.ServerInterceptor) -> None:
        self._inner = inner

    async def intercept_service(self, continuation: Continuation, details: Details) -> Any:
        """Pass open methods by and the others to the inner interceptor."""
        if is_open(str(details.method)):
            return await continuation(details)
        return await self._inner.intercept_service(continuation, details)


class RefuseAll(grpc.GenericRpcHandler):
    """Answers every RPC that nothing else answers with UNAUTHENTICATED."""

    def service(self, handler_call_details: Details) -> Handler:
        """A handler that refuses, whatever the method."""
        return _refusing(
            Unauthenticated(
                "OPERATIONS_PORT",
                "this port answers health checks and reflection only; call the service's own port",
            )
        )


async def abort(context: Context, error: NearlineError) -> None:
    """End the RPC with ``error``; always raises grpc.aio.AbortError."""
    await context.abort_with_status(rpc_status.to_status(errors.to_status(error)))


def _as_nearline(error: Exception) -> NearlineError:
    """What the caller may know of ``error``; a bug's text stays in the log."""
    if isinstance(error, NearlineError):
        return error
    if isinstance(error, grpc.RpcError):
        return errors.from_rpc_error(error)
    log.error("unhandled", exc_info=error)
    request_id = identity.current_request_id() or ""
    return Internal(
        "INTERNAL",
        f"the service failed; its log says why under request id {request_id}",
        request_id=request_id,
    )


def _metadata(pairs: Any) -> dict[str, Any]:
    return dict(pairs or ())


def _bind_request_id(sent: dict[str, Any]) -> None:
    theirs = sent.get(identity.REQUEST_ID_KEY)
    valid = identity.valid_request_id(theirs)
    identity.bind(request_id=theirs if valid else identity.new_request_id())


def _bind_identity(peer: str | None, data: bytes | None) -> None:
    if data is None:
        return
    if peer != identity.GATEWAY:
        raise PermissionDenied(
            "IDENTITY_NOT_ALLOWED",
            f"only {identity.GATEWAY!r} may set {identity.IDENTITY_KEY}; remove it from the call",
            peer=peer or "",
        )
    identity.bind(identity=identity.decode(data))


def _peer(context: Context) -> str | None:
    """Common name of the client's certificate."""
    names = list(context.auth_context().get("x509_common_name") or ())
    return names[0].decode() if names else None


def _code(context: Context) -> grpc.StatusCode:
    """The code that a handler aborted with by itself."""
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((c for c in grpc.StatusCode if c.value[0] == code), grpc.StatusCode.UNKNOWN)


def _refusing(error: Exception) -> Handler:
    """A handler for any arity that fails at once, without waiting for a request message."""
    failure = _as_nearline(error)

    async def refuse(requests: AsyncIterator[Any], context: Context) -> None:
        await abort(context, failure)

    return grpc.stream_stream_rpc_method_handler(refuse)


def wrapped(
    handler: Handler, run: Callable[[Context, Callable[[], Any]], Awaitable[Any]]
) -> Handler:
    """``handler`` with every call passed through ``run``.

    A generator's messages are written from here, so that a cancelled call unwinds the handler
    at once and in its own context; gRPC would leave the generator to the garbage collector.
    """
    name = f"{_side(handler.request_streaming)}_{_side(handler.response_streaming)}"
    inner = getattr(handler, name)
    make: Callable[..., Handler] = getattr(grpc, f"{name}_rpc_method_handler")

    async def call(request: Any, context: Context) -> Any:
        async def answer() -> Any:
            answered = inner(request, context)
            if isawaitable(answered):
                return await answered
            async with aclosing(answered) as messages:
                async for message in messages:
                    await context.write(message)
            return None

        return await run(context, answer)

    return make(call, handler.request_deserializer, handler.response_serializer)


def _side(streaming: bool) -> str:
    return "stream" if streaming else "unary"
