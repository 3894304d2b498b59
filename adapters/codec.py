"""PEFT folders from strangers, read and checked whole: files, config, header, names, shapes, sizes, values.

The order of trust: the tensors in the file, then the config, then ``medley.json``; where they disagree the adapter is
refused. Knows no torch, no server and no registry; imports nothing beyond numpy, so that the engine can use it on a
bare GPU box. Functions may be called from any thread; they read files, so never from an event loop.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from adapters.adapter_folder import ALLOWED_FILES, CONFIG_FILE, WEIGHTS_FILE, adapter_files, check_sizes
from adapters.adapter_weights import AdapterWeights, WeightAdapterWeights
from adapters.errors import AdapterTooLargeError, InvalidAdapterError, WrongBaseError
from adapters.manifest import MANIFEST_FILE, AdapterManifest, BaseModelSpec
from adapters.peft_families import Family, PromptPlan, WeightPlan, parse_config
from adapters.peft_tensors import TensorReader, read_entries
from adapters.safetensors_file import HeaderLimits, open_regular
from adapters.strict_json import parse_object, show

__all__ = [
    "ALLOWED_FILES",
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "CodecLimits",
    "inspect_adapter",
    "read_adapter",
]


@dataclass(frozen=True)
class CodecLimits:
    """Limits an adapter must keep.

    Attributes:
        max_file_bytes: Largest weights file.
        max_text_bytes: Largest of each other file.
        max_header_bytes: Longest safetensors header.
        max_tensors: Most tensors.
        max_rank: Largest LoRA rank; of a LoHa of rank r, that of the LoRA it is served as, r².
        max_virtual_tokens: Longest soft prompt or prefix.
    """

    max_file_bytes: int = 512 << 20
    max_text_bytes: int = 256 << 10
    max_header_bytes: int = 2 << 20
    max_tensors: int = 8192
    max_rank: int = 64
    max_virtual_tokens: int = 128

    @property
    def header(self) -> HeaderLimits:
        """The limits of the safetensors header."""
        return HeaderLimits(self.max_header_bytes, self.max_tensors)


@dataclass(frozen=True)
class _Folder:
    """What the small files of an adapter say, checked by themselves and against the base."""

    weights_file: Path
    config: Family
    manifest: AdapterManifest | None


def read_adapter(folder: Path, base: BaseModelSpec, limits: CodecLimits) -> AdapterWeights:
    """Return the weights of the adapter in ``folder``, after checking everything about it.

    Raises:
        InvalidAdapterError: If the files break the format; the message says where and what to do.
        UnsupportedAdapterError: If it is of a family that is not served per request.
        WrongBaseError: If it was made for another base.
        AdapterTooLargeError: If it is over a limit.
        OSError: If the files cannot be read.
    """
    parts = _read_folder(folder, base, limits)
    with open_regular(parts.weights_file) as file:
        reader, plan = _plan(file, parts.config, base, limits)
        if isinstance(plan, PromptPlan):
            return plan.load(reader)
        return WeightAdapterWeights(
            linears={path: load(reader) for path, load in plan.linears.items()},
            norms={path: load(reader) for path, load in plan.norms.items()},
        )


def inspect_adapter(folder: Path, base: BaseModelSpec, limits: CodecLimits, name: str) -> AdapterManifest:
    """Check everything about the adapter in ``folder`` and return its manifest under the name ``name``.

    Checks what :func:`read_adapter` checks, holding one layer's tensors at a time. The manifest is that of
    ``medley.json``, else made from config and tensors. Its prompt template is not checked here but by
    ``adapters.prompting.check_template``.

    Raises:
        InvalidAdapterError: As :func:`read_adapter`, and if ``medley.json`` says otherwise than the tensors.
        AdapterTooLargeError: If it is over a limit.
        OSError: If the files cannot be read.
    """
    parts = _read_folder(folder, base, limits)
    with open_regular(parts.weights_file) as file:
        reader, plan = _plan(file, parts.config, base, limits)
        if isinstance(plan, PromptPlan):
            plan.load(reader)
            found = AdapterManifest(name, plan.kind, num_virtual_tokens=plan.num_virtual_tokens)
        else:
            for load in (*plan.linears.values(), *plan.norms.values()):
                load(reader)
            targets = {path.rpartition(".")[2] for path in (*plan.linears, *plan.norms)}
            found = AdapterManifest(name, plan.kind, rank=plan.rank, target_modules=tuple(sorted(targets)))
    return _merge(found, parts)


def _plan(
    file: BinaryIO, config: Family, base: BaseModelSpec, limits: CodecLimits
) -> tuple[TensorReader, WeightPlan | PromptPlan]:
    entries = read_entries(file, limits.header)
    plan = config.plan(entries, base)
    if isinstance(plan, PromptPlan) and plan.num_virtual_tokens > limits.max_virtual_tokens:
        raise AdapterTooLargeError(
            f"the adapter has {plan.num_virtual_tokens} virtual tokens; at most {limits.max_virtual_tokens} are served"
        )
    if isinstance(plan, WeightPlan) and plan.rank > limits.max_rank:
        note = f" ({plan.rank_note})" if plan.rank_note else ""
        raise AdapterTooLargeError(f"the adapter has rank {plan.rank}{note}; at most {limits.max_rank} is served")
    return TensorReader(file, entries), plan


def _read_folder(folder: Path, base: BaseModelSpec, limits: CodecLimits) -> _Folder:
    files = adapter_files(folder)
    check_sizes(files, limits.max_file_bytes, limits.max_text_bytes)
    texts = {name: _read_text(path) for name, path in files.items() if name != WEIGHTS_FILE}
    manifest = None
    if MANIFEST_FILE in texts:
        manifest = AdapterManifest.from_json(texts[MANIFEST_FILE].decode())
        _check_base(manifest, base)
    config = parse_config(parse_object(texts[CONFIG_FILE], CONFIG_FILE))
    return _Folder(files[WEIGHTS_FILE], config, manifest)


def _read_text(path: Path) -> bytes:
    with open_regular(path) as file:
        data = file.read()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise InvalidAdapterError(f"{path.name} is not text in UTF-8") from error
    return data


def _check_base(manifest: AdapterManifest, base: BaseModelSpec) -> None:
    made_for = f"the adapter was made for {show(manifest.base_model)}; this server serves {show(base.model_id)}"
    if manifest.base_fingerprint and manifest.base_fingerprint != base.fingerprint:
        raise WrongBaseError(f"{made_for}, whose shapes differ")
    if manifest.base_weights_digest and base.weights_digest and manifest.base_weights_digest != base.weights_digest:
        raise WrongBaseError(f"{made_for}, whose weights differ")


def _merge(found: AdapterManifest, parts: _Folder) -> AdapterManifest:
    declared = parts.manifest
    if declared is None:
        return replace(found, base_model=parts.config.base_model)
    for key in ("kind", "rank", "num_virtual_tokens"):
        stated, actual = getattr(declared, key), getattr(found, key)
        if stated and stated != actual:
            raise InvalidAdapterError(f"{MANIFEST_FILE} says {key} {stated}, but the tensors say {actual}")
    return replace(
        declared,
        name=found.name,
        base_model=declared.base_model or parts.config.base_model,
        rank=found.rank,
        target_modules=found.target_modules,
        num_virtual_tokens=found.num_virtual_tokens,
    )
