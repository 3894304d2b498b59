"""Rollouts on the HTTP wire: what comes in and what goes out. Ranges are refused further down, with one wording."""

from dataclasses import asdict
from typing import Annotated, Literal, cast

from fastapi import Path
from pydantic import Field
from typing_extensions import TypedDict

from adapters.manifest import NAME_PATTERN
from adapters.registry import DEFAULT_ALIAS
from server.api.http.wire.fields import WireModel
from server.evaluation.rollouts.records import ROLLOUT_ID_PATTERN, Mode, Rollout, Terms
from server.service.rollouts import MAX_REASON_CHARS

_DEFAULTS = Terms()
_MAX_VERSION = 999_999_999

RolloutPath = Annotated[
    str, Path(description="Id of the rollout.", json_schema_extra={"pattern": f"^{ROLLOUT_ID_PATTERN}$"})
]


class RolloutBody(WireModel):
    """A candidate to try against what an alias points at."""

    alias: Annotated[str, Field(json_schema_extra={"pattern": rf"^{NAME_PATTERN.pattern}$", "maxLength": 63})] = (
        DEFAULT_ALIAS
    )
    candidate: int = Field(ge=1, le=_MAX_VERSION, description="Number of the version to try.")
    mode: Literal["canary", "shadow"] = "canary"
    percent: int = Field(_DEFAULTS.percent, description="Share of the alias's requests that reach the candidate.")
    metric: str = Field(_DEFAULTS.metric, description="Score to compare, in percent; more is better.")
    automatic: bool = Field(_DEFAULTS.automatic, description="Promote or roll back without being asked.")
    min_effect: float = Field(_DEFAULTS.min_effect, description="Points of the metric the candidate must gain.")
    max_num_requests: int = Field(_DEFAULTS.max_num_requests, description="Requests after which it ends undecided.")
    max_error_rate_increase: float = Field(
        _DEFAULTS.max_error_rate_increase, description="How much more often the candidate may fail, as a share of 1."
    )
    max_latency_ratio: float = Field(
        _DEFAULTS.max_latency_ratio, description="How many times the stable's 95th percentile its latency may be."
    )

    def terms(self) -> Terms:
        """Return the terms.

        Raises:
            InvalidArgumentError: If a value is out of range.
        """
        return Terms(
            mode=Mode(self.mode),
            percent=self.percent,
            metric=self.metric,
            automatic=self.automatic,
            min_effect=self.min_effect,
            max_num_requests=self.max_num_requests,
            max_error_rate_increase=self.max_error_rate_increase,
            max_latency_ratio=self.max_latency_ratio,
        )


class DecisionBody(WireModel):
    """Why somebody decides."""

    reason: str = Field(
        "",
        description="For people; kept with the decision.",
        json_schema_extra={"maxLength": MAX_REASON_CHARS},
    )


class ArmWire(TypedDict):
    """One side; what nothing is known of is null."""

    num_requests: int
    num_scored: int
    mean: float | None
    error_rate: float | None
    p95_e2e_ms: float | None


class ArmsWire(TypedDict):
    """Both sides; what shadows did is the candidate's."""

    stable: ArmWire
    candidate: ArmWire


class DecisionWire(TypedDict):
    """One decision; ``at_s`` counts from the epoch, ``by`` is ``server`` or who made it."""

    at_s: float
    by: str
    action: str
    reason: str
    data: dict[str, object]


class RolloutWire(TypedDict):
    """One rollout: its terms, how far it came, and the decisions made, oldest first; times count from the epoch."""

    id: str
    adapter: str
    alias: str
    stable_version: int
    candidate_version: int
    mode: str
    percent: int
    metric: str
    automatic: bool
    min_effect: float
    max_num_requests: int
    max_error_rate_increase: float
    max_latency_ratio: float
    state: str
    verdict: str
    arms: ArmsWire
    decisions: list[DecisionWire]
    created_s: float
    ended_s: float | None


class RolloutList(TypedDict):
    """Rollouts of an adapter, the newest first."""

    rollouts: list[RolloutWire]


def rollout_wire(rollout: Rollout) -> RolloutWire:
    """Translate a rollout."""
    plan, terms = rollout.plan, rollout.plan.terms
    return {
        "id": rollout.rollout_id,
        "adapter": plan.adapter,
        "alias": plan.alias,
        "stable_version": plan.stable_version,
        "candidate_version": plan.candidate_version,
        "mode": terms.mode,
        "percent": terms.percent,
        "metric": terms.metric,
        "automatic": terms.automatic,
        "min_effect": terms.min_effect,
        "max_num_requests": terms.max_num_requests,
        "max_error_rate_increase": terms.max_error_rate_increase,
        "max_latency_ratio": terms.max_latency_ratio,
        "state": rollout.state,
        "verdict": rollout.verdict,
        "arms": cast(ArmsWire, asdict(rollout.arms)),
        "decisions": [
            {
                "at_s": decision.at_s,
                "by": decision.by,
                "action": decision.action,
                "reason": decision.reason,
                "data": dict(decision.data),
            }
            for decision in rollout.decisions
        ],
        "created_s": rollout.created_s,
        "ended_s": rollout.ended_s,
    }
