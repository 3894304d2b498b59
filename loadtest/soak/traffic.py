"""One scenario made into several at once: over HTTP and gRPC, streams and whole answers. Knows no clients."""

from dataclasses import dataclass, replace

from loadtest.arrivals import Constant, Gamma, Poisson
from loadtest.clients.target import Protocol
from loadtest.metrics import Slo
from loadtest.scenario import Observe, Scenario


@dataclass(frozen=True, slots=True)
class Watched:
    """A running server on this machine.

    Attributes:
        http: ``host:port`` of HTTP.
        grpc: ``host:port`` of gRPC.
        pid: Its first process.
    """

    http: str
    grpc: str
    pid: int

    def address(self, protocol: Protocol) -> str:
        """Return ``host:port`` for one of Medley's protocols."""
        return self.grpc if protocol is Protocol.GRPC else self.http


def lanes_of(scenario: Scenario, server: Watched) -> dict[str, Scenario]:
    """Return the four scenarios by name, each with a quarter of the rate; the first has the operator and the observer.

    Raises:
        ValueError: If the scenario cannot be dealt out.
    """
    arrivals = scenario.arrivals
    if not isinstance(arrivals, Constant | Poisson | Gamma):
        raise ValueError(f"a soak needs arrivals with a rate, not {arrivals.kind}")
    if scenario.duration_s is None:
        raise ValueError("a soak needs duration_s")
    kinds = [(protocol, stream) for protocol in (Protocol.HTTP, Protocol.GRPC) for stream in (True, False)]
    lanes = {}
    for number, (protocol, stream) in enumerate(kinds):
        name = f"{protocol.value}-{'streamed' if stream else 'whole'}"
        lanes[name] = replace(
            scenario,
            name=name,
            seed=scenario.seed + number,
            target=replace(scenario.target, protocol=protocol, address=server.address(protocol), stream=stream),
            arrivals=replace(arrivals, rate=arrivals.rate / len(kinds)),
            slo=scenario.slo if stream else Slo(e2e_ms=scenario.slo.e2e_ms),
            prepare=None,
            churn=None if number else scenario.churn,
            observe=Observe(every_s=0.0) if number else scenario.observe,
        )
    return lanes
