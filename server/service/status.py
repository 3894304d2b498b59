"""What a server is made of and what it is doing now, as operators want to see it. Event loop's thread only."""

from dataclasses import dataclass

from server.engine.base import Engine, EngineInfo, EngineStats
from server.service.health import HealthService, Readiness


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A snapshot.

    Attributes:
        readiness: Whether requests are welcome.
        info: What the engine is.
        stats: What it is doing.
    """

    readiness: Readiness
    info: EngineInfo
    stats: EngineStats


class StatusService:
    """Tells what there is.

    Args:
        engine: The engine.
        health: Whether it may be sent requests.
    """

    def __init__(self, engine: Engine, health: HealthService) -> None:
        """Keep the parts."""
        self._engine = engine
        self._health = health

    def status(self) -> ServerStatus:
        """Return a snapshot; for callers who see every adapter, as it has the digests of all that are resident."""
        return ServerStatus(self._health.ready(), self._engine.info, self._engine.stats())
