"""Whether the server lives and whether it may be sent requests."""

from dataclasses import dataclass
from enum import StrEnum

from server.engine.base import Engine


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether requests are welcome, and if not, why."""

    ready: bool
    reason: str = ""


class Phase(StrEnum):
    """Where the server is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class HealthService:
    """Liveness and readiness.

    Args:
        engine: The engine that must live.
    """

    def __init__(self, engine: Engine) -> None:
        """Begin as starting."""
        self._engine = engine
        self._phase = Phase.STARTING

    @property
    def phase(self) -> Phase:
        """Where the server is in its life."""
        return self._phase

    def enter(self, phase: Phase) -> None:
        """Move on; only the runtime calls this."""
        self._phase = phase

    def live(self) -> bool:
        """Return False when only a restart of the server helps, and not where the engine restarts by itself."""
        stats = self._engine.stats()
        return self._phase is Phase.STARTING or stats.alive or stats.is_restarting

    def ready(self) -> Readiness:
        """Return whether requests are welcome."""
        if self._phase is not Phase.SERVING:
            return Readiness(ready=False, reason=f"the server is {self._phase}")
        stats = self._engine.stats()
        if not stats.alive:
            return Readiness(
                ready=False, reason="the engine is being restarted" if stats.is_restarting else "the engine died"
            )
        return Readiness(ready=True)
