"""What an operator can set about evaluation. Reads no environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.core.errors import InvalidArgumentError

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """Limits of scoring, and what is kept.

    Attributes:
        sample_rate: Share of ended requests that are kept, from 0 to 1; those with references, and those of a rollout,
            always are.
        sample_rates: Adapter name → share, where it is another one; ``base`` is the base. Of two adapters used
            together the higher one counts.
        store_texts: Whether answers and references may be written to the database, rather than their hashes only.
        max_age_s: Seconds a request is kept in the database.
        max_num_kept: Most requests kept there; the oldest go first.
        upkeep_every_s: Seconds between two looks at what is too old, and at references that nobody scored.
        claim_lease_s: Seconds a server has to score references it took on, before another one does.
        max_num_unwritten: Most requests that wait to be written; what comes beyond is dropped and counted.
        max_num_examined: Most requests of an adapter combination that figures are made of, the newest ones.
        max_num_queued: Most requests that wait to be scored.
        max_num_finished: Most finished requests remembered for references that come later.
        finished_ttl_s: Seconds a finished request is remembered.
        max_num_labels: Most adapter combinations with figures of their own.
        warm_at_start: Whether the server is ready only once the scorer is, which takes seconds; else the first text to
            be scored waits for it, and a server nobody asks for scores never loads it.

    Raises:
        InvalidArgumentError: If a rate is not a share, or a bound is not over 0.
    """

    sample_rate: float = 1.0
    sample_rates: Mapping[str, float] = field(default_factory=dict)
    store_texts: bool = False
    max_age_s: float = 30 * _DAY_S
    max_num_kept: int = 100_000
    upkeep_every_s: float = 30.0
    claim_lease_s: float = 60.0
    max_num_unwritten: int = 2048
    max_num_examined: int = 2000
    max_num_queued: int = 256
    max_num_finished: int = 4096
    finished_ttl_s: float = 900.0
    max_num_labels: int = 128
    warm_at_start: bool = True

    def __post_init__(self) -> None:
        """Refuse what could keep nothing, or look without a pause."""
        for rate in (self.sample_rate, *self.sample_rates.values()):
            if not 0.0 <= rate <= 1.0:
                raise InvalidArgumentError("evaluation.sample_rate and sample_rates are from 0 to 1")
        bounds = (self.max_age_s, self.max_num_kept, self.upkeep_every_s, self.claim_lease_s, self.max_num_unwritten)
        if min(*bounds, self.max_num_examined) <= 0:
            raise InvalidArgumentError("evaluation's ages, numbers and pauses must be over 0")
