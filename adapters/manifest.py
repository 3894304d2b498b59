"""What an adapter says of itself, and what a base model demands of it.

The manifest travels as ``medley.json`` beside the PEFT files; a plain PEFT folder without one gets a manifest made
from its tensors and config. Knows no files, no tensors, no server.
"""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Self

from adapters.errors import InvalidAdapterError, InvalidAdapterReferenceError
from adapters.strict_json import parse_object, show

MANIFEST_FILE = "medley.json"
MAX_TEXT_CHARS = 1024
MAX_DESCRIPTION_CHARS = 4096
_MAX_NUM_ITEMS = 256
# Control characters but tab and line feed, and those that turn the direction of what follows.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


class AdapterRole(StrEnum):
    """What an adapter takes in a request, which names at most one of each; device slots are counted by role."""

    WEIGHTS = "weights"
    PROMPT = "prompt"


class AdapterKind(StrEnum):
    """Adapter families that can be served per request."""

    LORA = "lora"
    IA3 = "ia3"
    NORM = "norm"
    PROMPT = "prompt"
    PREFIX = "prefix"

    @property
    def role(self) -> AdapterRole:
        """Whether it changes the base's layers or comes before the text."""
        return AdapterRole.PROMPT if self in (AdapterKind.PROMPT, AdapterKind.PREFIX) else AdapterRole.WEIGHTS


def is_encoder_decoder(architecture: str) -> bool:
    """Whether a model of that class has an encoder; transformers ends the names of those that have none one way."""
    return not architecture.endswith("ForCausalLM")


@dataclass(frozen=True)
class BaseModelSpec:
    """What a base model demands of its adapters.

    Attributes:
        model_id: Name callers use for the base, as ``medley-mini``.
        architecture: Class name, as ``T5ForConditionalGeneration``.
        d_model: Width of embeddings and so of soft-prompt rows.
        vocab_size: Rows of the embedding table.
        linear_shapes: Module path → (out, in) of every linear layer an adapter may target.
        weights_digest: SHA-256 of the base's weights file where known.
        norm_paths: Module path of every norm an adapter may tune; all are ``d_model`` wide.
        num_decoder_layers: Decoder layers, each with one prefix; 0 where prefixes are not served.
        num_heads: Heads of each attention; 0 where prefixes are not served.
        d_kv: Width of a head; 0 where prefixes are not served.
    """

    model_id: str
    architecture: str
    d_model: int
    vocab_size: int
    linear_shapes: Mapping[str, tuple[int, int]]
    weights_digest: str | None = None
    norm_paths: frozenset[str] = frozenset()
    num_decoder_layers: int = 0
    num_heads: int = 0
    d_kv: int = 0

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts go through an encoder; if not, adapters are those PEFT makes for ``CAUSAL_LM``."""
        return is_encoder_decoder(self.architecture)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over architecture and shapes: equal for bases an adapter fits, whatever their weights."""
        shapes = sorted((path, list(shape)) for path, shape in self.linear_shapes.items())
        # Adapters carry it: what else is known of a base must not come in, or they would no longer fit theirs.
        text = json.dumps([self.architecture, self.d_model, self.vocab_size, shapes], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class AdapterManifest:
    """What an adapter is.

    Attributes:
        name: Registered name.
        kind: Adapter family.
        base_model: Id of the base it was trained on, for people.
        base_fingerprint: :attr:`BaseModelSpec.fingerprint` of that base; empty when unknown.
        base_weights_digest: SHA-256 of that base's weights; empty when unknown.
        prompt_template: Template that wraps the user's text; empty means the base's own.
        rank: Largest LoRA rank; 0 where it is no LoRA.
        target_modules: Module suffixes it changes; empty for soft prompts and prefixes.
        num_virtual_tokens: Rows of a soft prompt or prefix; 0 for the others.
        task: What it does, as ``summarization``.
        licence: SPDX identifier.
        description: One sentence for people.
        scores: Metric name → value measured at training, in percent for ROUGE.
        metrics: What its answers are scored by in production, as ``rouge``; empty means what its task has.
    """

    name: str
    kind: AdapterKind
    base_model: str = ""
    base_fingerprint: str = ""
    base_weights_digest: str = ""
    prompt_template: str = ""
    rank: int = 0
    target_modules: tuple[str, ...] = ()
    num_virtual_tokens: int = 0
    task: str = ""
    licence: str = ""
    description: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the manifest as indented JSON, keys in the order of the fields."""
        document = asdict(self)
        if not self.metrics:
            del document["metrics"]  # servers older than the field refuse it
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a manifest.

        Raises:
            InvalidAdapterError: If it is not strict JSON, or has unknown, missing or ill-typed fields.
        """
        raw = parse_object(text.encode(errors="surrogatepass"), MANIFEST_FILE)
        unknown = sorted(set(raw) - {known.name for known in fields(cls)})
        if unknown:
            raise InvalidAdapterError(f"{MANIFEST_FILE} has unknown fields: {show(unknown)}")
        kind = _text(raw, "kind")
        if not _text(raw, "name") or kind not in set(AdapterKind):
            raise InvalidAdapterError(f"{MANIFEST_FILE} needs a name, and a kind of {', '.join(AdapterKind)}")
        return cls(
            name=_text(raw, "name"),
            kind=AdapterKind(kind),
            base_model=_text(raw, "base_model"),
            base_fingerprint=_text(raw, "base_fingerprint"),
            base_weights_digest=_text(raw, "base_weights_digest"),
            prompt_template=_typed_text(raw, "prompt_template"),
            rank=_count(raw, "rank"),
            target_modules=_texts(raw, "target_modules"),
            num_virtual_tokens=_count(raw, "num_virtual_tokens"),
            task=_text(raw, "task"),
            licence=_text(raw, "licence"),
            description=_text(raw, "description", MAX_DESCRIPTION_CHARS),
            scores=_scores(raw, "scores"),
            metrics=_texts(raw, "metrics"),
        )


def check_shown(text: str, what: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Return a stranger's text if it may be shown to people as it is, in a list or a terminal.

    Raises:
        InvalidAdapterError: If it is longer than ``max_chars``, or holds a control character other than tab and line
            feed, or one that turns the direction of writing.
    """
    if len(text) > max_chars:
        raise InvalidAdapterError(f"{what} has {len(text)} characters; at most {max_chars} are taken")
    if found := _UNSHOWN.search(text):
        raise InvalidAdapterError(f"{what} holds the control character {show(found[0])}")
    return text


def _text(raw: Mapping[str, object], key: str, max_chars: int = MAX_TEXT_CHARS) -> str:
    return check_shown(_typed_text(raw, key), f"{MANIFEST_FILE}: {key}", max_chars)


def _typed_text(raw: Mapping[str, object], key: str) -> str:
    value = raw.get(key, "")
    if not isinstance(value, str):
        raise InvalidAdapterError(f"{MANIFEST_FILE}: {key} must be text")
    return value


def _count(raw: Mapping[str, object], key: str) -> int:
    value = raw.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise InvalidAdapterError(f"{MANIFEST_FILE}: {key} must be a whole number, 0 or more")
    return value


def _texts(raw: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = raw.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or len(value) > _MAX_NUM_ITEMS:
        raise InvalidAdapterError(f"{MANIFEST_FILE}: {key} must be a list of at most {_MAX_NUM_ITEMS} texts")
    return tuple(check_shown(item, f"{MANIFEST_FILE}: {key}") for item in value)


def _scores(raw: Mapping[str, object], key: str) -> Mapping[str, float]:
    value = raw.get(key, {})
    if not isinstance(value, dict) or len(value) > _MAX_NUM_ITEMS:
        raise InvalidAdapterError(f"{MANIFEST_FILE}: {key} must map at most {_MAX_NUM_ITEMS} metric names to numbers")
    for metric, score in value.items():
        check_shown(metric, f"{MANIFEST_FILE}: a name in {key}")
        if not isinstance(score, int | float) or isinstance(score, bool) or not abs(score) <= sys.float_info.max:
            raise InvalidAdapterError(f"{MANIFEST_FILE}: {key} must map metric names to finite numbers")
    return {metric: float(score) for metric, score in value.items()}


def check_name(name: str) -> str:
    """Return ``name`` if it may be an adapter's name or an alias.

    Raises:
        InvalidAdapterReferenceError: Unless it is 1 to 63 lower-case letters, digits, ``.``, ``_`` or ``-``, begins and
            ends with a letter or digit and has no ``..``.
    """
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise InvalidAdapterReferenceError(
            "a name is 1 to 63 lower-case letters, digits, '.', '_' or '-', and begins and ends with a letter or digit"
        )
    return name
