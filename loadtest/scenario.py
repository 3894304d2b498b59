"""A scenario: all that is asked of a run, checked before anything is sent. Knows no files.

Every part is a small class where it is used; here they are put together, and what does not go together is refused.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from loadtest.arrivals import Arrivals, ClosedLoop, Gamma, Poisson, Trace
from loadtest.clients.target import Protocol, Target
from loadtest.examples import SHIPPED_EXAMPLES
from loadtest.lengths import Lengths
from loadtest.metrics import Slo
from loadtest.popularity import AnyPopularity, Weighted
from loadtest.spec import FilePath, Seconds, spec


@spec
class WarmUp:
    """What goes before the measured part.

    Attributes:
        rounds: Requests of each kind sent one after the other, so that adapters become resident.
        duration_s: Then, seconds of the run's own load whose requests are kept in the records but not in the figures.
    """

    rounds: Annotated[int, Field(ge=0, le=1000)] = 1
    duration_s: Seconds = 0.0


@spec
class ClientLimits:
    """What the client may do, and how well it has to.

    Attributes:
        num_processes: Processes that send; arrivals are dealt out among them.
        max_in_flight: Most requests in flight; one more is dropped, and counted.
        max_lag_p99_ms: Bound on the 99th percentile of the client's own lag. Beyond it no figures are given.
    """

    num_processes: Annotated[int, Field(ge=1, le=128)] = 1
    max_in_flight: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    max_lag_p99_ms: Annotated[float, Field(gt=0)] = 100.0


@spec
class Prepare:
    """Adapters made before the run, where the server does not have them.

    Attributes:
        source: A PEFT folder, or the name of a shipped adapter. Each adapter made is a variant of it: as good, with
            weights and a digest of its own.
    """

    source: str


@spec
class Churn:
    """An operator who changes adapters during the run, one change after the other.

    Attributes:
        names: Adapters changed in turn; requests to them count apart from those to bystanders.
        source: As of :class:`Prepare`; every upload is a new variant of it.
        every_s: Seconds from one change's start to the next one's.
        keep: Versions of a name that are kept; older ones are deleted once an alias has moved on.
    """

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    source: str
    every_s: Annotated[float, Field(gt=0, le=86400)] = 1.0
    keep: Annotated[int, Field(ge=1, le=1000)] = 2


@spec
class Observe:
    """The server's own counters, read during the run for the timeline.

    Attributes:
        address: ``host:port`` whose ``/metrics`` is read; the target's when empty and it speaks HTTP.
        every_s: Seconds between readings; 0 reads nothing.
    """

    address: str = ""
    every_s: Annotated[float, Field(ge=0, le=3600)] = 0.5


@spec
class Scenario:
    """One run.

    Attributes:
        name: How reports call it.
        about: What it is for.
        seed: Of every draw; the same seed sends the same requests at the same times.
        duration_s: Send for so many seconds, warm-up not among them.
        num_requests: Send at most so many.
        target: The server.
        arrivals: When requests are sent.
        adapters: What they ask for.
        data: Their texts: JSON lines with ``dialogue`` or ``text``, ``.xz`` too.
        lengths: Of texts and answers.
        warm_up: What goes before.
        slo: What makes a request good.
        client: The client's limits.
        prepare: Adapters to make, if any.
        churn: Changes of adapters meanwhile, if any.
        observe: The server's own counters.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    duration_s: Annotated[float, Field(gt=0, le=7 * 86400)] | None = None
    num_requests: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    target: Target = Target()
    arrivals: Arrivals = Poisson()
    adapters: AnyPopularity = Weighted()
    data: FilePath = SHIPPED_EXAMPLES
    lengths: Lengths = Lengths()
    warm_up: WarmUp = WarmUp()
    slo: Slo = Slo()
    client: ClientLimits = ClientLimits()
    prepare: Prepare | None = None
    churn: Churn | None = None
    observe: Observe = Observe()

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.duration_s is None and self.num_requests is None and not isinstance(self.arrivals, Trace):
            raise ValueError("a run needs 'duration_s' or 'num_requests'")
        if self.duration_s is None and isinstance(self.arrivals, Gamma) and self.arrivals.per_adapter:
            raise ValueError("arrivals per adapter need 'duration_s'")
        if isinstance(self.arrivals, ClosedLoop) and self.arrivals.num_users < self.client.num_processes:
            raise ValueError("there must be as many users as client processes, or more")
        return self

    @model_validator(mode="after")
    def _protocol_can(self) -> Self:
        if not self.target.stream and {"ttft", "tpot"} & set(self.slo.bounds_ms):
            raise ValueError("bounds on TTFT and TPOT need target.stream (--stream)")
        if self.lengths.exact and self.target.protocol is not Protocol.OPENAI:
            raise ValueError("lengths.exact needs target.protocol openai")
        if self.lengths.exact and self.lengths.output is None:
            raise ValueError("lengths.exact needs lengths.output")
        if not self.target.is_medley and (self.prepare or self.churn):
            raise ValueError("'prepare' and 'churn' need target.protocol http or grpc")
        return self

    @property
    def observed_address(self) -> str:
        """Whose ``/metrics`` to read; empty for none."""
        same = self.target.full_address if self.target.protocol is Protocol.HTTP else ""
        return (self.observe.address or same) if self.observe.every_s else ""
