"""Recipe files: YAML loaded into frozen dataclasses; an unknown key or a wrong kind of value is an error.

It knows what can be set and the defaults. It does not know how anything is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import yaml

from adapters.errors import InvalidAdapterError
from adapters.scoring.plugins import check_metrics
from training.data.config import DataConfig
from training.errors import TrainingConfigError

RecipeT = TypeVar("RecipeT")
MethodT = TypeVar("MethodT")
_ABOUT_RECORDS = ("log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "mlflow")


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
    """How long, how fast and how often: everything the training loop itself needs.

    Attributes:
        seed: Of data order, initial values and dropout.
        max_steps: Updates.
        learning_rate: Peak of the schedule; a share of each tensor's own size where updates are relative.
        warmup_steps: Steps of the linear rise.
        cooldown_share: Share of the steps in which the rate falls to a hundredth.
        weight_decay: Decoupled, per unit of learning rate.
        betas: Decay of the two moments.
        relative_updates: Scale each tensor's update by its own size.
        update_clip: Largest root mean square of a tensor's update before it is scaled; 0 for plain AdamW.
        orthogonal_updates: Turn the layers' matrices by orthogonalized momentum (Muon); with relative updates only.
        max_grad_norm: Largest norm of the whole gradient; 0 for no limit.
        paged_optimizer: Keep the moments where they can be paged out of GPU memory (bitsandbytes; CUDA only).
        accumulation: Pieces a batch is worked through in, one after another: less memory, the same gradient.
        bfloat16: Compute in bfloat16; updates are made in float32 all the same.
        num_threads: Threads on a CPU.
        log_every: Steps between lines of the log.
        evaluate_every: Steps between evaluations.
        checkpoint_every: Steps between checkpoints.
        keep_checkpoints: Checkpoints that stay on disk, the latest ones.
        tensorboard: Write the log for TensorBoard, too.
        mlflow: Tracking URI of an MLflow server or folder; empty for none.
    """

    seed: int = 13
    max_steps: int = 1000
    learning_rate: float = 0.01
    warmup_steps: int = 100
    cooldown_share: float = 0.25
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    relative_updates: bool = True
    update_clip: float = 1.0
    orthogonal_updates: bool = False
    max_grad_norm: float = 0.0
    paged_optimizer: bool = False
    accumulation: int = 1
    bfloat16: bool = True
    num_threads: int = 2
    log_every: int = 20
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    tensorboard: bool = True
    mlflow: str = ""


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
    """What the adapter's manifest and card say of it.

    Attributes:
        num_samples: Validation answers that stand in the card.
        metrics: What its answers are scored by once it is served; none for what its task has.
    """

    name: str
    task: str
    licence: str
    data_licence: str
    data_title: str
    description: str
    prompt_template: str
    limits: str
    num_samples: int = 0
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse before the training what a server would refuse after it.

        Raises:
            TrainingConfigError: a metric is unknown.
        """
        try:
            check_metrics(self.metrics)
        except InvalidAdapterError as error:
            raise TrainingConfigError(f"adapter.metrics: {error}") from error


@dataclass(frozen=True)
class AdapterRecipe(Generic[MethodT]):
    """`medley train METHOD`: what is trained, on what, and how; the method's own section is named after it.

    Attributes:
        adapter: What manifest and card say.
        data: What it learns from.
        loop: How long, how fast, how often.
        method: The method's section, one of ``training.methods``.
        base: Folder of the base, or the hub id of one.
        batch_tokens: Padded tokens a step, source and target together.
    """

    adapter: AdapterIdentity
    data: DataConfig
    loop: LoopConfig
    method: MethodT
    base: str = "adapters/library/medley-mini"
    batch_tokens: int = 8_000


def load_recipe(kind: type[RecipeT], path: Path, overrides: list[str] | None = None) -> RecipeT:
    """Read a recipe file and apply `a.b=value` overrides (values are YAML).

    Raises:
        TrainingConfigError: unreadable file, unknown key, or a value of the wrong kind.
    """
    return typing.cast(RecipeT, _build(kind, _overridden(_read(path), overrides or []), path.name))


def load_adapter_recipe(
    name: str,
    methods: Mapping[str, type[MethodT]],
    path: Path,
    overrides: list[str] | None = None,
) -> AdapterRecipe[MethodT]:
    """Read the recipe of a method; its section is `name`, and one of another method is an error.

    A file that says `extends: OTHER.yaml` takes over the keys of that file, beside it, but for other methods' sections.

    Args:
        name: the method.
        methods: every method's section.
        path: the recipe file.
        overrides: `a.b=value` each.

    Raises:
        TrainingConfigError: unreadable file, unknown key, or a value of the wrong kind.
    """
    values = _overridden(_read(path, not_inherited=set(methods) - {name}), overrides or [])
    others = sorted(values.keys() & (methods.keys() - {name}))
    if others:
        raise TrainingConfigError(f"{path.name}: has a section {others[0]!r}; train it by `medley train {others[0]}`")
    method = _build(methods[name], values.pop(name, {}), f"{path.name}.{name}")
    if "method" in values:
        raise TrainingConfigError(f"{path.name}: unknown key 'method'; the section is called {name!r}")
    return typing.cast("AdapterRecipe[MethodT]", _build(AdapterRecipe, values | {"method": method}, path.name))


def method_of(methods: Collection[str], path: Path, above: tuple[Path, ...] = ()) -> str:
    """Return the method whose section a recipe file has, or else the nearest file that it extends.

    Where there is none at all it is `full`, which has nothing to set. `above` are the files that led here.

    Raises:
        TrainingConfigError: unreadable file, several sections, or a file that extends itself.
    """
    if path.resolve() in above:
        raise TrainingConfigError(f"{path.name}: extends itself")
    values = _yaml_of(path)
    found = sorted(values.keys() & set(methods))
    if len(found) > 1:
        raise TrainingConfigError(f"{path.name}: has sections of several methods: {', '.join(found)}")
    parent = values.get("extends")
    if not found and isinstance(parent, str):
        return method_of(methods, path.parent / parent, (*above, path.resolve()))
    return found[0] if found else "full"


def _read(path: Path, not_inherited: Set[str] = frozenset(), above: tuple[Path, ...] = ()) -> dict[str, object]:
    """Read a recipe file over the one it extends; `above` are the files that led here."""
    values = _yaml_of(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str) or path.resolve() in above:
        raise TrainingConfigError(f"{path.name}: extends names another recipe file, not {parent!r}")
    inherited = _read(path.parent / parent, not_inherited, (*above, path.resolve()))
    return _merged({key: value for key, value in inherited.items() if key not in not_inherited}, values)


def _yaml_of(path: Path) -> dict[str, object]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingConfigError(f"cannot read recipe {path}: {error}") from error
    if not isinstance(values, dict):
        raise TrainingConfigError(f"{path.name}: expected a mapping, got {values!r}")
    return values


def _merged(below: dict[str, object], above: dict[str, object]) -> dict[str, object]:
    merged = below | above
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merged[key] = _merged(typing.cast("dict[str, object]", below[key]), value)
    return merged


def _overridden(values: dict[str, object], overrides: list[str]) -> dict[str, object]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise TrainingConfigError(f"an override has the form a.b=value, not {override!r}")
        *parents, last = key.strip().split(".")
        target = values
        for parent in parents:
            below = target.setdefault(parent, {})
            if not isinstance(below, dict):
                raise TrainingConfigError(f"{override!r}: {parent} has no keys")
            target = below
        try:
            target[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise TrainingConfigError(f"{override!r}: the value is not YAML") from error
    return values


def fingerprint(recipe: object, *, without: tuple[str, ...] = ("max_steps", "cooldown_share", "num_threads")) -> str:
    """Return a short hash of a recipe, without the keys that may differ between a run and its continuation.

    Raises:
        Nothing.
    """
    values = dataclasses.asdict(recipe)  # type: ignore[call-overload]
    values["kind"] = type(getattr(recipe, "method", recipe)).__name__
    for key in (*without, *_ABOUT_RECORDS):
        values.get("loop", {}).pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _build(kind: object, value: object, where: str) -> object:
    """Turn plain YAML values into `kind`, checking every key and type on the way."""
    if isinstance(kind, TypeVar):
        return value
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
