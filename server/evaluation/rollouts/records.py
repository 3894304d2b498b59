"""What a rollout is: its plan, how far it came, and the decisions made about it. Plain values; knows no database."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from server.core.errors import InvalidArgumentError

DEFAULT_METRIC = "rougeL"
MAX_NUM_REQUESTS = 50_000
ROLLOUT_ID_PATTERN = r"ro_[0-9a-f]{20}"
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Mode(StrEnum):
    """What the candidate does: answer a share of the requests, or run beside and never answer."""

    CANARY = "canary"
    SHADOW = "shadow"


class State(StrEnum):
    """Where a rollout is in its life; only ``running`` routes requests."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ENDED = "ended"


class Verdict(StrEnum):
    """What the figures say of the candidate."""

    NO_DATA = "NO_DATA"
    INCONCLUSIVE = "INCONCLUSIVE"
    BETTER = "BETTER"
    WORSE = "WORSE"
    GUARD_RAIL = "GUARD_RAIL"

    @property
    def is_final(self) -> bool:
        """Whether more figures no longer matter: what is proven stays proven."""
        return self not in (Verdict.NO_DATA, Verdict.INCONCLUSIVE)


class Action(StrEnum):
    """What was decided."""

    START = "start"
    HOLD = "hold"
    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    END = "end"


def _check_range(param: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidArgumentError(f"{param} is from {least:g} to {most:g}", param=param)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a candidate is tried.

    Attributes:
        mode: Whether the candidate answers.
        percent: Share of the alias's requests that reach the candidate: 1 to 99, of shadows 1 to 100.
        metric: Score that is compared; in percent, and more is better.
        automatic: Whether the server acts on its verdicts; by hand one may always act.
        min_effect: By how much the candidate's mean must be higher to be better, in points of the metric.
        max_num_requests: Requests after which an undecided rollout ends.
        max_error_rate_increase: How much more often than the stable version the candidate may fail, as a share of 1.
        max_latency_ratio: How many times the stable version's 95th percentile of latency the candidate's may be.

    Raises:
        InvalidArgumentError: If a value is out of range.
    """

    mode: Mode = Mode.CANARY
    percent: int = 50
    metric: str = DEFAULT_METRIC
    automatic: bool = True
    min_effect: float = 0.0
    max_num_requests: int = 5000
    max_error_rate_increase: float = 0.05
    max_latency_ratio: float = 2.0

    def __post_init__(self) -> None:
        """Refuse terms that could never be kept."""
        if not _METRIC.fullmatch(self.metric):
            raise InvalidArgumentError("metric is the name of a score, as rougeL", param="metric")
        _check_range("percent", self.percent, 1, 99 if self.mode is Mode.CANARY else 100)
        _check_range("min_effect", self.min_effect, 0, 100)
        _check_range("max_num_requests", self.max_num_requests, 1, MAX_NUM_REQUESTS)
        _check_range("max_error_rate_increase", self.max_error_rate_increase, 0, 1)
        _check_range("max_latency_ratio", self.max_latency_ratio, 1, 1000)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollout is to do; never changes.

    Attributes:
        adapter: Name of the adapter.
        alias: Whose requests take part.
        stable_version: What the alias points at.
        candidate_version: What it may point at afterwards.
        terms: On what terms.

    Raises:
        InvalidArgumentError: If both are one version.
    """

    adapter: str
    alias: str
    stable_version: int
    candidate_version: int
    terms: Terms = Terms()

    def __post_init__(self) -> None:
        """Refuse to compare a version with itself."""
        if self.stable_version == self.candidate_version:
            raise InvalidArgumentError("the alias points at the candidate already", param="candidate")


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """What was seen of one side.

    Attributes:
        num_requests: Requests that ended.
        num_scored: Those of them with a score of the rollout's metric.
        mean: Their mean score; None where there is none.
        error_rate: Share of the requests that failed by no fault of the caller's; None where there are none.
        p95_e2e_ms: 95th percentile of the latency of good answers; None where there are none.
    """

    num_requests: int = 0
    num_scored: int = 0
    mean: float | None = None
    error_rate: float | None = None
    p95_e2e_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Arms:
    """Both sides; what a shadow did is the candidate's."""

    stable: ArmFigures = ArmFigures()
    candidate: ArmFigures = ArmFigures()


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision.

    Attributes:
        at_s: When, in Unix time.
        by: ``server``, or who made it, as ``key:3f9a0c``.
        action: What was decided.
        reason: Why, for people.
        data: What it was decided by; values that JSON can hold.
    """

    at_s: float
    by: str
    action: Action
    reason: str
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One rollout.

    Attributes:
        rollout_id: Its id, as ``ro_…``.
        plan: What it is to do.
        state: Where it is in its life.
        verdict: What the figures say so far, or said at its end.
        created_s: When it was begun, in Unix time.
        ended_s: When it ended; None while it runs.
        promotion: The decision to promote, from when it is made until the alias is moved; None else.
        origin: Where that decision came from.
        arms: The figures at its end; empty while it runs.
        decisions: All decisions, oldest first; empty where they were not asked for.
    """

    rollout_id: str
    plan: Plan
    state: State
    verdict: Verdict
    created_s: float
    ended_s: float | None = None
    promotion: Decision | None = None
    origin: str = ""
    arms: Arms = Arms()
    decisions: tuple[Decision, ...] = ()
