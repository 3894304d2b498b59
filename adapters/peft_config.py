"""PEFT's ``adapter_config.json``: the fields that change the maths, and the refusal of those we do not compute.

A field is taken only if it is known to leave inference alone or is computed here; any other field must be off (null,
false, empty), so that a newer PEFT cannot slip a new behaviour past us. Which modules an adapter changes is read from
its tensors, never from ``target_modules``. Functions may be called from any thread.

Source:
    https://github.com/huggingface/peft/blob/v0.21.2/src/peft/tuners/lora/config.py and, beside it,
    ``tuners/prompt_tuning/config.py`` and ``utils/other.py`` (``get_pattern_key``).
"""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.adapter_folder import CONFIG_FILE
from adapters.errors import AdapterTooLargeError, InvalidAdapterError, UnsupportedAdapterError
from adapters.strict_json import show

LORA = "LORA"
PROMPT_TUNING = "PROMPT_TUNING"

_ABOUT_ORIGIN = {
    *(
        "peft_type",
        "task_type",
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
}
_LORA_FIELDS = _ABOUT_ORIGIN | {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias"),
    # These say where to put new layers; the tensors say where they are.
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    # A and B are stored as [R, in] and [out, R] whichever way round the base keeps its own weight.
    "fan_in_fan_out",
    # These only tune switches that must be off, or say how A and B were begun.
    *("qalora_group_size", "megatron_core", "ensure_weight_tying", "eva_config"),
}
_PROMPT_FIELDS = _ABOUT_ORIGIN | {
    *("num_virtual_tokens", "num_transformer_submodules", "token_dim", "num_layers", "num_attention_heads"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
}
_INITS_THAT_KEEP_THE_BASE = {"gaussian", "eva", "orthogonal"}
_FIELD_NAMES = {"use_dora": "DoRA", "modules_to_save": "modules_to_save (full copies of base layers)"}

_MAX_PATTERNS = 1024
_MAX_PATTERN_CHARS = 256
_MAX_WILD_PATTERNS = 32
_MAX_REPEATS = 2
_MAX_ALTERNATIVES = 16
# One part of a pattern: a literal, a class, an escape or a dot, perhaps repeated; an anchor; a group's bracket, never
# repeated. Whatever else Python takes (look-around, counted or nested repeats, back-references) could run for ever.
_PATTERN_PART = re.compile(
    r"(?:[A-Za-z0-9_\-.]|\\[dw.]|\[(?:\w(?:-\w)?)+\])(?P<repeat>[*+?]?)|\(\?:|[\^$(]|\)(?![*+?{])|\|",
    re.ASCII,
)


@dataclass(frozen=True)
class LoraConfig:
    """What scales and sizes a LoRA.

    Attributes:
        rank: Rank where no pattern matches.
        lora_alpha: alpha where no pattern matches.
        rank_pattern: Pattern of module path → rank, in the file's order.
        alpha_pattern: Pattern of module path → alpha, in the file's order.
        use_rslora: Whether s is alpha/√R instead of alpha/R.
        base_model: Name of the base, for people.
    """

    rank: int
    lora_alpha: float
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]
    use_rslora: bool
    base_model: str

    def rank_of(self, path: str) -> int:
        """Return the rank at a module path; the first pattern that matches wins."""
        return next((rank for pattern, rank in self.rank_pattern.items() if pattern.match(path)), self.rank)

    def scaling_of(self, path: str, rank: int) -> float:
        """Return s in y = Wx + s·B(Ax) at a module path whose pair has that rank.

        Source:
            LoRA: arXiv:2106.09685; rank-stabilized LoRA: arXiv:2312.03732.
        """
        alpha = next((alpha for pattern, alpha in self.alpha_pattern.items() if pattern.match(path)), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class PromptConfig:
    """What sizes a soft prompt.

    Attributes:
        num_virtual_tokens: Rows that are used, n.
        base_model: Name of the base, for people.
    """

    num_virtual_tokens: int
    base_model: str


def parse_config(raw: Mapping[str, object]) -> LoraConfig | PromptConfig:
    """Return the config of a family that can be served.

    Raises:
        InvalidAdapterError: If a field is missing or out of range.
        UnsupportedAdapterError: If it is of another family, or switches on something that is not computed.
        AdapterTooLargeError: If it has too many patterns.
    """
    peft_type = raw.get("peft_type")
    if peft_type == LORA:
        return _lora(raw)
    if peft_type == PROMPT_TUNING:
        return _prompt(raw)
    if isinstance(peft_type, str):
        raise UnsupportedAdapterError(
            f"adapters of type {show(peft_type)} are not supported; use LoRA or prompt tuning"
        )
    raise InvalidAdapterError(f"{CONFIG_FILE} needs peft_type")


def _lora(raw: Mapping[str, object]) -> LoraConfig:
    _refuse_others(raw, _LORA_FIELDS)
    init = raw.get("init_lora_weights", True)
    if not isinstance(init, bool) and init not in _INITS_THAT_KEEP_THE_BASE:
        raise UnsupportedAdapterError(
            f"init_lora_weights {show(init)} changes the base's weights; convert the adapter to a plain LoRA in PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return LoraConfig(
        rank=_count(raw.get("r"), "r"),
        lora_alpha=_number(raw.get("lora_alpha"), "lora_alpha"),
        rank_pattern={key: _count(value, "rank_pattern") for key, value in _patterns(raw, "rank_pattern").items()},
        alpha_pattern={key: _number(value, "alpha_pattern") for key, value in _patterns(raw, "alpha_pattern").items()},
        use_rslora=_flag(raw, "use_rslora"),
        base_model=_base_model(raw),
    )


def _prompt(raw: Mapping[str, object]) -> PromptConfig:
    _refuse_others(raw, _PROMPT_FIELDS)
    if raw.get("task_type") not in (None, "SEQ_2_SEQ_LM"):
        raise UnsupportedAdapterError(
            f"a soft prompt for {show(raw['task_type'])} is not supported; the base is an encoder-decoder: SEQ_2_SEQ_LM"
        )
    return PromptConfig(_count(raw.get("num_virtual_tokens"), "num_virtual_tokens"), _base_model(raw))


def _refuse_others(raw: Mapping[str, object], known: set[str]) -> None:
    for key, value in raw.items():
        if key not in known and value not in (None, False, "", [], {}):
            name = _FIELD_NAMES.get(key, show(key))
            raise UnsupportedAdapterError(f"{name} is not supported; train the adapter without it ({CONFIG_FILE})")


def _patterns(raw: Mapping[str, object], key: str) -> dict[re.Pattern[str], object]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must map module patterns to numbers")
    num_wild = sum(any(sign in pattern for sign in "*+?|") for pattern in patterns)
    if len(patterns) > _MAX_PATTERNS or num_wild > _MAX_WILD_PATTERNS:
        raise AdapterTooLargeError(
            f"{CONFIG_FILE}: {key} takes at most {_MAX_PATTERNS} modules, {_MAX_WILD_PATTERNS} of them with wildcards"
        )
    return {_compile(pattern, key): value for pattern, value in patterns.items()}


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    parts = list(_PATTERN_PART.finditer(pattern[:_MAX_PATTERN_CHARS]))
    num_repeats = sum(bool(part["repeat"]) for part in parts)
    is_plain = "".join(part[0] for part in parts) == pattern
    if not is_plain or num_repeats > _MAX_REPEATS or pattern.count("|") > _MAX_ALTERNATIVES or pattern.count("(") > 1:
        raise UnsupportedAdapterError(
            f"{CONFIG_FILE}: the pattern {show(pattern)} in {key} is not supported; use module names, at most one "
            f"group of alternatives and {_MAX_REPEATS} wildcards"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise InvalidAdapterError(f"{CONFIG_FILE}: the pattern {show(pattern)} in {key} is malformed") from error


def _base_model(raw: Mapping[str, object]) -> str:
    name = raw.get("base_model_name_or_path") or ""
    if not isinstance(name, str):
        raise InvalidAdapterError(f"{CONFIG_FILE}: base_model_name_or_path must be text")
    return name


def _flag(raw: Mapping[str, object], key: str) -> bool:
    value = raw.get(key, False)
    if not isinstance(value, bool):
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must be true or false")
    return value


def _count(value: object, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must be a whole number of 1 or more, not {show(value)}")
    return value


def _number(value: object, key: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise InvalidAdapterError(f"{CONFIG_FILE}: {key} must be a finite number, not {show(value)}")
    return float(value)
