"""The adapter families that are served, one module each: what its config says, which tensors it has, how they fold.

To add a family: a module with a class that has ``parse`` and ``plan`` (see ``plan.Family``), and a line in
``_FAMILIES``. Knows no folders. Any thread.
"""

from collections.abc import Callable, Mapping

from adapters.adapter_folder import CONFIG_FILE
from adapters.errors import InvalidAdapterError, UnsupportedAdapterError
from adapters.peft_families.adalora import AdaLora
from adapters.peft_families.ia3 import Ia3
from adapters.peft_families.layer_norm import LayerNormTuning
from adapters.peft_families.loha import Loha
from adapters.peft_families.lora import Lora
from adapters.peft_families.plan import Family, PromptPlan, WeightPlan
from adapters.peft_families.prefix import Prefix
from adapters.peft_families.soft_prompt import SoftPrompt
from adapters.peft_families.vera import Vera
from adapters.strict_json import show

__all__ = ["Family", "PromptPlan", "WeightPlan", "parse_config"]

_FAMILIES: Mapping[str, Callable[[Mapping[str, object]], Family]] = {
    "LORA": Lora.parse,
    "ADALORA": AdaLora.parse,
    "LOHA": Loha.parse,
    "VERA": Vera.parse,
    "IA3": Ia3.parse,
    "LN_TUNING": LayerNormTuning.parse,
    "PROMPT_TUNING": SoftPrompt.parse,
    "P_TUNING": SoftPrompt.parse,
    "MULTITASK_PROMPT_TUNING": SoftPrompt.parse,
    "PREFIX_TUNING": Prefix.parse,
}
_CONVERTIBLE = frozenset(
    {
        *("C3A", "DELORA", "FOURIERFT", "GRALORA", "HIRA", "LOKR", "MISS", "PSOFT"),
        *("RANDLORA", "SHIRA", "TINYLORA", "UNILORA", "VBLORA", "WAVEFT"),
    }
)
_MIXTURES = frozenset({"POLY", "XLORA"})


def parse_config(raw: Mapping[str, object]) -> Family:
    """Return the config of a family that can be served.

    Raises:
        InvalidAdapterError: If a field is missing or out of range.
        UnsupportedAdapterError: If it is of another family, or switches on something that is not computed.
        AdapterTooLargeError: If it has too many patterns.
    """
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str):
        raise InvalidAdapterError(f"{CONFIG_FILE} needs peft_type, as PEFT's save_pretrained writes it")
    if peft_type not in _FAMILIES:
        raise UnsupportedAdapterError(f"adapters of type {show(peft_type)} are not supported; {_advice(peft_type)}")
    return _FAMILIES[peft_type](raw)


def _advice(peft_type: str) -> str:
    if peft_type in _CONVERTIBLE:
        return "convert it to a LoRA (PEFT's save_as_lora)"
    if peft_type in _MIXTURES:
        return "save and send the LoRAs it mixes one by one"
    return f"train one of {', '.join(_FAMILIES)}"
