"""Health of the store as users and operators see it."""

import asyncio

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nearline.gateway.v1 import gateway_pb2 as api
from nearline.monitor.v1 import monitor_pb2 as ledger
from nearline.monitor.v1 import monitor_pb2_grpc
from services.kit.errors import NearlineError, from_rpc_error

_HEALTHY = api.GetSystemResponse.HEALTHY
_DEGRADED = api.GetSystemResponse.DEGRADED
_DOWN = api.GetSystemResponse.DOWN

# A user waits for this answer: a service that takes longer is as good as down.
_PATIENCE_SECONDS = 3.0

Channels = dict[str, grpc.aio.Channel]


class System:
    """Asks the services that the gateway can reach, and the ledger about the workers of all."""

    def __init__(self, channels: Channels) -> None:
        """``channels`` by service name: catalog, monitor and transfer."""
        self._health = {name: health_pb2_grpc.HealthStub(ch) for name, ch in channels.items()}
        self._monitor = monitor_pb2_grpc.MonitorServiceStub(channels["monitor"])

    async def look(self) -> api.GetSystemResponse:
        """The health of all five services; never fails for one that is down."""
        workers, troubles = await asyncio.gather(
            self._workers(), asyncio.gather(*map(self._trouble, self._health))
        )
        known = dict(zip(self._health, troubles, strict=True))
        response = summarize(known, workers)
        now = Timestamp()
        now.GetCurrentTime()
        response.at.CopyFrom(now)
        return response

    async def _workers(self) -> ledger.ListWorkersResponse | None:
        try:
            return await self._monitor.ListWorkers(
                ledger.ListWorkersRequest(), timeout=_PATIENCE_SECONDS
            )
        except grpc.aio.AioRpcError:
            return None

    async def _trouble(self, name: str) -> str:
        """Empty when the service serves."""
        try:
            answer = await self._health[name].Check(
                health_pb2.HealthCheckRequest(), timeout=_PATIENCE_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            return _reason(from_rpc_error(error))
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "" if serving else "it answers, but is not ready"


def summarize(
    troubles: dict[str, str], workers: ledger.ListWorkersResponse | None
) -> api.GetSystemResponse:
    """The health of each service from what it answered, and of its workers. Pure.

    ``troubles``: service → what is wrong, empty when it serves. ``workers``: None when the ledger
    did not say.
    """
    response = api.GetSystemResponse()
    if workers is not None:
        response.tasks_ready = workers.ready
        response.tasks_leased = workers.leased
        response.tasks_delayed = workers.delayed
        response.tasks_parked = workers.parked
    for name in ("gateway", "catalog", "monitor", "transfer", "tape"):
        response.services.append(_service(name, troubles.get(name, ""), workers))
    health = [service.health for service in response.services]
    response.health = _HEALTHY if set(health) == {_HEALTHY} else _DEGRADED
    return response


def _service(
    name: str, trouble: str, workers: ledger.ListWorkersResponse | None
) -> api.GetSystemResponse.Service:
    service = api.GetSystemResponse.Service(
        name=name, health=_DOWN if trouble else _HEALTHY, trouble=trouble
    )
    if name in ("transfer", "tape"):
        if workers is None:
            _worsen(service, _DEGRADED, "its workers are unknown while the monitor is down")
        else:
            _add_workers(service, [w for w in workers.workers if w.service == name])
    return service


def _add_workers(service: api.GetSystemResponse.Service, workers: list[ledger.Worker]) -> None:
    # A worker that is gone is of interest only while none has taken its place.
    connected = [worker for worker in workers if worker.connected]
    service.workers.extend(connected or workers)
    if not connected:
        _worsen(service, _DOWN, "no worker is connected")
    for worker in connected:
        if worker.trouble:
            _worsen(service, _DEGRADED, worker.trouble)


def _worsen(
    service: api.GetSystemResponse.Service,
    health: api.GetSystemResponse.Health.ValueType,
    trouble: str,
) -> None:
    service.health = max(service.health, health)
    if trouble not in service.trouble:
        service.trouble = f"{service.trouble}; {trouble}" if service.trouble else trouble


def _reason(error: NearlineError) -> str:
    return f"it does not answer ({error.message})"
