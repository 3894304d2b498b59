"""``grpc.health.v1.Health`` over the server's own readiness: asked at each check, watched by looking again.

Source:
    https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio

import grpc
from grpc_health.v1 import health_pb2

from server.api.grpc.errors import Context
from server.service.health import HealthService

_SERVING = int(health_pb2.HealthCheckResponse.SERVING)
_NOT_SERVING = int(health_pb2.HealthCheckResponse.NOT_SERVING)
_SERVICE_UNKNOWN = int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)


class HealthServicer:
    """Answers for the whole server ("") and for each of its services alike.

    Args:
        health: The service.
        service_names: Full names of the services asked about.
        poll_s: How often a watcher's state is looked at.
    """

    def __init__(self, health: HealthService, service_names: tuple[str, ...], poll_s: float) -> None:
        """Keep the parts."""
        self._health = health
        self._names = frozenset({"", *service_names})
        self._poll_s = poll_s

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Answer once; an unknown service is NOT_FOUND."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, _request: health_pb2.HealthListRequest, _context: Context) -> health_pb2.HealthListResponse:
        """Answer for every service at once."""
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._names}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Answer now and at every change, until the caller goes away."""
        last: int | None = None
        while True:
            status = self._status(request.service)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            await asyncio.sleep(self._poll_s)

    def _status(self, service: str) -> int:
        if service not in self._names:
            return _SERVICE_UNKNOWN
        ready = self._health.ready().ready
        return _SERVING if ready else _NOT_SERVING
