"""Recipe files: YAML loaded into frozen dataclasses; an unknown key or a wrong kind of value is an error.

It knows what can be set and the defaults. It does not know how anything is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from training.data.config import DataConfig
from training.errors import TrainingConfigError

RecipeT = TypeVar("RecipeT")


@dataclass(frozen=True)
class ModelShape:
    """Size of the base: widths and layer counts (encoder and decoder have `num_layers` each)."""

    vocab_size: int = 4096
    d_model: int = 256
    d_kv: int = 64
    num_heads: int = 4
    d_ff: int = 640
    num_layers: int = 3


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast and how often: everything the training loop itself needs."""

    seed: int = 13
    max_steps: int = 1000
    learning_rate: float = 0.01
    warmup_steps: int = 100
    cooldown_share: float = 0.25
    weight_decay: float = 0.0
    relative_updates: bool = True
    bfloat16: bool = True
    num_threads: int = 2
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 500


@dataclass(frozen=True)
class BaseRecipe:
    """`medley train base`: tokenizer, mixture, model and loop of the embedded base."""

    name: str = "medley-mini"
    model: ModelShape = field(default_factory=ModelShape)
    loop: LoopConfig = field(default_factory=LoopConfig)
    batch_tokens: int = 10_000
    length_limits: tuple[int, int] = (512, 128)
    shard_examples: int = 20_000
    early_shards: int = 2
    early_span_share: float = 0.2
    early_mixture: dict[str, float] = field(default_factory=dict)
    span_share: float = 0.2
    mixture: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterIdentity:
    """What the adapter's manifest and card say of it."""

    name: str
    task: str
    licence: str
    data_licence: str
    data_title: str
    description: str
    prompt_template: str
    limits: str


@dataclass(frozen=True)
class LoraShape:
    """LoRA's own numbers; `target_modules` are suffixes of the base's linear layers."""

    rank: int = 32
    alpha: int = 64
    target_modules: tuple[str, ...] = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")


@dataclass(frozen=True)
class LoraRecipe:
    """`medley train lora`."""

    adapter: AdapterIdentity
    data: DataConfig
    loop: LoopConfig
    lora: LoraShape = field(default_factory=LoraShape)
    base: str = "adapters/library/medley-mini"
    batch_tokens: int = 8_000


@dataclass(frozen=True)
class PromptShape:
    """Prompt tuning's own numbers; the rows start as the embeddings of `init_text`, repeated as needed."""

    num_virtual_tokens: int = 20
    init_text: str = "Summarize what both speakers say, want and decide, in the third person."


@dataclass(frozen=True)
class PromptRecipe:
    """`medley train prompt`."""

    adapter: AdapterIdentity
    data: DataConfig
    loop: LoopConfig
    prompt: PromptShape = field(default_factory=PromptShape)
    base: str = "adapters/library/medley-mini"
    batch_tokens: int = 8_000


def load_recipe(kind: type[RecipeT], path: Path, overrides: list[str] | None = None) -> RecipeT:
    """Read a recipe file and apply `a.b=value` overrides (values are YAML).

    Raises:
        TrainingConfigError: unreadable file, unknown key, or a value of the wrong kind.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise TrainingConfigError(f"cannot read recipe {path}: {error}") from error
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals:
            raise TrainingConfigError(f"an override has the form a.b=value, not {override!r}")
        *parents, last = key.strip().split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise TrainingConfigError(f"{override!r}: {parent} has no keys")
        target[last] = yaml.safe_load(text)
    return typing.cast(RecipeT, _build(kind, values, path.name))


def fingerprint(recipe: object, *, without: tuple[str, ...] = ("max_steps", "cooldown_share", "num_threads")) -> str:
    """Return a short hash of a recipe, without the keys that may differ between a run and its continuation.

    Raises:
        Nothing.
    """
    values = dataclasses.asdict(recipe)  # type: ignore[call-overload]
    for key in (*without, "log_every", "evaluate_every", "checkpoint_every"):
        values.get("loop", {}).pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _build(kind: object, value: object, where: str) -> object:
    """Turn plain YAML values into `kind`, checking every key and type on the way."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_build(k, item, where) for k, item in zip(kinds, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {_build(args[0], k, where): _build(args[1], v, f"{where}.{k}") for k, v in value.items()}
    elif kind is float and type(value) in {int, float}:
        return float(typing.cast(float, value))
    elif type(value) is kind:
        return value
    raise TrainingConfigError(f"{where}: {value!r} is not of kind {kind}")


def _build_dataclass(kind: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise TrainingConfigError(f"{where}: expected a mapping, got {value!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise TrainingConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(hints))}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in value]
    if missing:
        raise TrainingConfigError(f"{where}: missing key {missing[0]!r}")
    return kind(**{key: _build(hints[key], item, f"{where}.{key}") for key, item in value.items()})
