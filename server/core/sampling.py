"""How to choose tokens: the sampling parameters of one request and their limits.

Knows nothing of logits; the engine's sampler reads this. Meanings follow ``transformers``' generation parameters.
"""

from dataclasses import dataclass

from server.core.errors import InvalidArgumentError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request.

    Attributes:
        max_new_tokens: Most tokens to generate, ≥ 1; the service refuses more than the engine allows.
        temperature: 0 is greedy; else logits are divided by it, in [0, 10].
        top_p: Nucleus mass in (0, 1].
        top_k: Keep the k most likely tokens; 0 keeps all.
        seed: Seed of this row's own random generator; None draws one.
        stop: Strings that end the text; they are not part of it.
        repetition_penalty: CTRL penalty over tokens generated so far, > 0; 1 is off.
        no_repeat_ngram_size: No n-gram of this size appears twice in the output; 0 is off.
        num_logprobs: How many alternatives to report per token; None reports none, 0 only the chosen one.

    Raises:
        InvalidArgumentError: If a value is out of range; ``param`` names the field.

    Source:
        Repetition penalty: arXiv:1909.05858; nucleus sampling: arXiv:1904.09751.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, NaN included (a comparison with NaN is false)."""
        _require(self.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")
        _require(0.0 <= self.temperature <= 10.0, "temperature", "must be between 0 and 10")
        _require(0.0 < self.top_p <= 1.0, "top_p", "must be above 0 and at most 1")
        _require(0 <= self.top_k <= 2**31 - 1, "top_k", "must be 0 (off) or positive")
        _require(self.seed is None or 0 <= self.seed <= MAX_SEED, "seed", f"must be between 0 and {MAX_SEED}")
        _require(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"takes at most {MAX_STOP_STRINGS} strings")
        _require(
            all(0 < len(stop) <= MAX_STOP_CHARS for stop in self.stop),
            "stop",
            f"strings must have 1 to {MAX_STOP_CHARS} characters",
        )
        _require(0.0 < self.repetition_penalty <= 10.0, "repetition_penalty", "must be above 0 and at most 10")
        _require(0 <= self.no_repeat_ngram_size <= 64, "no_repeat_ngram_size", "must be between 0 and 64")
        _require(
            self.num_logprobs is None or 0 <= self.num_logprobs <= MAX_LOGPROBS,
            "logprobs",
            f"must be between 0 and {MAX_LOGPROBS}",
        )


def _require(holds: bool, param: str, rule: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{param} {rule}", param=param)
