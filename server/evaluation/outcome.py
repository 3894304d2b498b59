"""What evaluation keeps of an ended request. Knows no database and no protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

OK = "OK"


class Arm(StrEnum):
    """Which side of a rollout a request was on; a shadow's answer is never handed out."""

    STABLE = "stable"
    CANDIDATE = "candidate"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class RolloutPart:
    """The rollout that routed a request.

    Attributes:
        rollout_id: Which.
        arm: Where to.
    """

    rollout_id: str
    arm: Arm


@dataclass(frozen=True, slots=True)
class Outcome:
    """One ended request.

    Attributes:
        request_id: The request.
        who: Who asked; others cannot find it.
        adapters: ``base``, ``name:version`` or two joined by ``+``.
        digests: Content addresses of those adapters.
        code: ``OK`` or an error code.
        input_sha256: Of the caller's text, not of the rendered prompt; hexadecimal.
        num_prompt_tokens: Of the rendered prompt, virtual ones not among them.
        num_completion_tokens: Of the answer.
        ttft_s: Time to first token; None if there was none.
        e2e_s: End-to-end latency.
        finished_s: When it ended, in Unix time.
        text: The answer.
        rollout: The rollout that routed it; None outside of one.
    """

    request_id: str
    who: str
    adapters: str
    digests: tuple[str, ...]
    code: str
    input_sha256: str
    num_prompt_tokens: int
    num_completion_tokens: int
    ttft_s: float | None
    e2e_s: float
    finished_s: float
    text: str
    rollout: RolloutPart | None = None


@dataclass(frozen=True, slots=True)
class RolloutOutcome:
    """What a rollout is decided by: one ended request of it.

    Attributes:
        arm: Which side it was on.
        code: ``OK`` or an error code.
        e2e_s: End-to-end latency.
        scores: Metric name → value; empty until it was scored.
        finished_s: When it ended, in Unix time.
    """

    arm: Arm
    code: str
    e2e_s: float
    scores: Mapping[str, float]
    finished_s: float
