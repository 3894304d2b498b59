"""What an adapter says of itself, and what a base model demands of it.

The manifest travels as ``medley.json`` beside the PEFT files; a plain PEFT folder without one gets a manifest made
from its tensors and config. Knows no files, no tensors, no server.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Self

from adapters.errors import InvalidAdapterError, InvalidAdapterReferenceError

MANIFEST_FILE = "medley.json"
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


class AdapterKind(StrEnum):
    """Adapter families that can be served per request."""

    LORA = "lora"
    PROMPT = "prompt"


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
    """

    model_id: str
    architecture: str
    d_model: int
    vocab_size: int
    linear_shapes: Mapping[str, tuple[int, int]]
    weights_digest: str | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over architecture and shapes: equal for bases an adapter fits, whatever their weights."""
        shapes = sorted((path, list(shape)) for path, shape in self.linear_shapes.items())
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
        rank: Largest LoRA rank; 0 for soft prompts.
        target_modules: Module suffixes a LoRA changes.
        num_virtual_tokens: Rows of a soft prompt; 0 for LoRA.
        task: What it does, as ``summarization``.
        licence: SPDX identifier.
        description: One sentence for people.
        scores: Metric name → value measured at training, in percent for ROUGE.
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

    def to_json(self) -> str:
        """Return the manifest as indented JSON, keys in the order of the fields."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a manifest.

        Raises:
            InvalidAdapterError: If it is not JSON, has unknown or missing fields, or fields of the wrong type.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidAdapterError(f"{MANIFEST_FILE} is not valid JSON") from error
        if not isinstance(raw, dict):
            raise InvalidAdapterError(f"{MANIFEST_FILE} must be a JSON object")
        unknown = sorted(set(raw) - {known.name for known in fields(cls)})
        if unknown:
            raise InvalidAdapterError(f"{MANIFEST_FILE} has unknown fields: {', '.join(unknown)}")
        return cls(**_checked(raw))


def _checked(raw: dict[str, object]) -> dict[str, object]:
    for key in ("name", "kind"):
        if not isinstance(raw.get(key), str):
            raise InvalidAdapterError(f"{MANIFEST_FILE} needs the field {key!r} as a string")
    if raw["kind"] not in set(AdapterKind):
        raise InvalidAdapterError(f"{MANIFEST_FILE}: unknown kind {raw['kind']!r}")
    expected = {"rank": int, "num_virtual_tokens": int, "target_modules": list, "scores": dict}
    for key, value in raw.items():
        kind = expected.get(key, str)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidAdapterError(f"{MANIFEST_FILE}: {key} must be of type {kind.__name__}")
    checked = dict(raw)
    checked["kind"] = AdapterKind(str(raw["kind"]))
    targets = raw.get("target_modules", [])
    scores = raw.get("scores", {})
    assert isinstance(targets, list) and isinstance(scores, dict)
    checked["target_modules"] = tuple(str(target) for target in targets)
    if not all(isinstance(score, int | float) for score in scores.values()):
        raise InvalidAdapterError(f"{MANIFEST_FILE}: scores must be numbers")
    checked["scores"] = {str(metric): float(score) for metric, score in scores.items()}
    return checked


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
