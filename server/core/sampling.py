"""How to choose tokens: the sampling parameters of one request and their limits.

Knows nothing of logits; the engine's sampler reads this. Meanings follow ``transformers``' generation parameters, or
OpenAI's where it has none. Which of them an engine honours, its ``EngineInfo`` says.
"""

from dataclasses import dataclass
from typing import Literal

from server.core.errors import InvalidArgumentError

DEFAULT_NEW_TOKENS = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 64
MAX_BIASED_TOKENS = 1024
MAX_GRAMMAR_CHARS = 65_536
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the text must match.

    Attributes:
        kind: How ``rule`` is written: a JSON schema, a regular expression, a JSON list of texts to choose from, a
            context-free grammar (EBNF), or nothing: any JSON object.
        rule: The rule; empty for ``json_object``.

    Raises:
        InvalidArgumentError: If the rule is too long, or missing.
    """

    kind: Literal["json", "regex", "choice", "grammar", "json_object"]
    rule: str = ""

    def __post_init__(self) -> None:
        """Refuse rules that are missing or out of range; whether one can be compiled is the engine's to say."""
        _require(len(self.rule) <= MAX_GRAMMAR_CHARS, self.kind, f"takes at most {MAX_GRAMMAR_CHARS} characters")
        _require(bool(self.rule) != (self.kind == "json_object"), self.kind, "needs a rule")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request.

    Attributes:
        max_new_tokens: Most tokens to generate, ≥ 1; the service refuses more than the engine allows. None is as many
            as fit; the service settles it, so that engines never see None.
        min_new_tokens: No end of sequence and no ``stop_token_ids`` before this many tokens.
        ignore_eos: Go on behind the end-of-sequence token, which then is a token like others.
        temperature: 0 is greedy; else logits are divided by it, in [0, 10].
        top_p: Nucleus mass in (0, 1].
        top_k: Keep the k most likely tokens; 0 keeps all.
        min_p: Keep tokens at least this share as likely as the likeliest, in [0, 1]; 0 keeps all.
        seed: Seed of this row's own random generator; None draws one.
        stop: Strings that end the text; they are not part of it.
        repetition_penalty: CTRL penalty over tokens generated so far, > 0; 1 is off.
        presence_penalty: Taken from the logits of tokens generated so far, in [-2, 2]; 0 is off.
        frequency_penalty: Taken from them once per time they were generated, in [-2, 2]; 0 is off.
        no_repeat_ngram_size: No n-gram of this size appears twice in the output; 0 is off.
        logit_bias: Pairs of a token and what is added to its logit, each in [-100, 100].
        stop_token_ids: Tokens that end the text; they are not part of it.
        grammar: What the text must match, or None.
        num_logprobs: How many alternatives to report per token; None reports none, 0 only the chosen one.
        num_prompt_logprobs: The same for the prompt's tokens; engines report them on the first output.

    Raises:
        InvalidArgumentError: If a value is out of range; ``param`` names the field.

    Source:
        Repetition penalty: arXiv:1909.05858; nucleus sampling: arXiv:1904.09751; min-p: arXiv:2407.01082; presence and
        frequency penalties: https://platform.openai.com/docs/api-reference/completions/create.
    """

    max_new_tokens: int | None = DEFAULT_NEW_TOKENS
    min_new_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range, NaN included (a comparison with NaN is false)."""
        _require(self.max_new_tokens is None or self.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")
        most = self.min_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        _require(0 <= self.min_new_tokens <= most, "min_new_tokens", "must be between 0 and max_new_tokens")
        _require(0.0 <= self.temperature <= 10.0, "temperature", "must be between 0 and 10")
        _require(0.0 < self.top_p <= 1.0, "top_p", "must be above 0 and at most 1")
        _require(0 <= self.top_k <= 2**31 - 1, "top_k", "must be 0 (off) or positive")
        _require(0.0 <= self.min_p <= 1.0, "min_p", "must be between 0 and 1")
        _require(self.seed is None or 0 <= self.seed <= MAX_SEED, "seed", f"must be between 0 and {MAX_SEED}")
        _require(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"takes at most {MAX_STOP_STRINGS} strings")
        _require(
            all(0 < len(stop) <= MAX_STOP_CHARS for stop in self.stop),
            "stop",
            f"strings must have 1 to {MAX_STOP_CHARS} characters",
        )
        _require(0.0 < self.repetition_penalty <= 10.0, "repetition_penalty", "must be above 0 and at most 10")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(-2.0 <= getattr(self, name) <= 2.0, name, "must be between -2 and 2")
        _require(len(self.stop_token_ids) <= MAX_STOP_TOKENS, "stop_token_ids", f"takes at most {MAX_STOP_TOKENS}")
        _require(
            len(self.logit_bias) <= MAX_BIASED_TOKENS and all(-100.0 <= bias <= 100.0 for _, bias in self.logit_bias),
            "logit_bias",
            f"takes at most {MAX_BIASED_TOKENS} tokens, each with a bias between -100 and 100",
        )
        _require(0 <= self.no_repeat_ngram_size <= 64, "no_repeat_ngram_size", "must be between 0 and 64")
        for name, count in (("logprobs", self.num_logprobs), ("prompt_logprobs", self.num_prompt_logprobs)):
            _require(count is None or 0 <= count <= MAX_LOGPROBS, name, f"must be between 0 and {MAX_LOGPROBS}")


def _require(holds: bool, param: str, rule: str) -> None:
    if not holds:
        raise InvalidArgumentError(f"{param} {rule}", param=param)
