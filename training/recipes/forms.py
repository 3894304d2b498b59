"""The three forms in which a method's result is kept: a PEFT adapter, a base of its own, or bottleneck networks.

Each knows how its files are written, read back, and labelled for the server. None knows how the weights were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerFast

from adapters.base_spec import read_base_spec
from adapters.codec import CodecLimits, inspect_adapter
from training.answers import FolderAnswers
from training.base_model import Base, load_base
from training.bottleneck import load_bottlenecks, save_bottlenecks
from training.config import AdapterIdentity
from training.evaluate import generate_texts
from training.export import export_adapter, export_model, write_base_manifest, write_manifest

# What the codec's limits guard is a server; what was trained here may be larger than one server's.
_LIMITS = CodecLimits(max_file_bytes=8 << 30, max_header_bytes=16 << 20, max_tensors=65_536, max_rank=65_536)


class Form(Protocol):
    """How a result is kept.

    Attributes:
        can_be_pushed: Whether a running server takes it.
        use: What can be done with it, in one line; `{folder}` and `{name}` stand for the result's.
    """

    can_be_pushed: bool
    use: str

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the weights as they are to a folder."""

    def answer(self, folder: Path, prompts: Sequence[str], answers: FolderAnswers) -> list[str]:
        """Return the greedy answers of the saved weights.

        Args:
            folder: Where they are.
            prompts: What to answer.
            answers: Of the base.
        """

    def label(self, about: AdapterIdentity, scores: Mapping[str, float], folder: Path) -> None:
        """Write what the server reads beside the weights."""


def next_step(form: Form, about: AdapterIdentity, folder: Path) -> str:
    """Say in one line what can be done with a result.

    Raises:
        Nothing.
    """
    return form.use.format(folder=folder, name=about.name)


@dataclass(frozen=True)
class PeftForm:
    """A PEFT folder, taken by a running server."""

    base: Base
    can_be_pushed: bool = True
    use: str = "an adapter for a running server: medley adapters push {folder} --name {name}"

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the adapter in bfloat16.

        Raises:
            OSError: the folder cannot be written.
        """
        export_adapter(model, folder, self.base.name)

    def answer(self, folder: Path, prompts: Sequence[str], answers: FolderAnswers) -> list[str]:
        """Return the answers of the saved adapter over the base.

        Raises:
            AdapterError: the files are broken.
            EvaluationError: the engine fails.
        """
        return answers.answer([folder], prompts)

    def label(self, about: AdapterIdentity, scores: Mapping[str, float], folder: Path) -> None:
        """Write the manifest; what the server's own reader finds in the tensors goes into it.

        Raises:
            AdapterError: the server's reader would not take the adapter.
        """
        spec = read_base_spec(self.base.folder, self.base.hub_id)
        found = inspect_adapter(folder, spec, _LIMITS, about.name)
        manifest = replace(
            found,
            base_model=spec.model_id,
            base_fingerprint=spec.fingerprint,
            base_weights_digest=spec.weights_digest or "",
            prompt_template=about.prompt_template,
            task=about.task,
            licence=about.licence,
            description=about.description,
            scores=dict(scores),
            metrics=about.metrics,
        )
        write_manifest(manifest, folder)


@dataclass(frozen=True)
class BaseForm:
    """A model folder that a server can be started on; it cannot be an adapter among others."""

    tokenizer: PreTrainedTokenizerFast
    can_be_pushed: bool = False
    use: str = "a base of its own, which no running server can take as an adapter: medley serve --model {folder}"

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the whole model in bfloat16, with its tokenizer.

        Raises:
            OSError: the folder cannot be written.
        """
        export_model(model, self.tokenizer, folder)

    def answer(self, folder: Path, prompts: Sequence[str], answers: FolderAnswers) -> list[str]:
        """Return the answers of the saved model.

        Raises:
            EvaluationError: the engine fails.
        """
        with FolderAnswers(folder, answers.max_new_tokens) as own:
            return own.answer([], prompts)

    def label(self, about: AdapterIdentity, scores: Mapping[str, float], folder: Path) -> None:  # noqa: ARG002
        """Write the base's manifest: its name, and the template it was trained with as its own.

        Raises:
            OSError: the folder cannot be written.
        """
        write_base_manifest(about.name, about.prompt_template, folder)


@dataclass(frozen=True)
class BottleneckForm:
    """Bottleneck networks in files of their own; Medley does not serve them."""

    base: Base
    width: int
    after: str
    can_be_pushed: bool = False
    use: str = "bottleneck networks, which Medley trains and measures but does not serve: {folder}"

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the networks in bfloat16.

        Raises:
            OSError: the folder cannot be written.
        """
        save_bottlenecks(model, folder, self.width, self.after, self.base.name)

    def answer(self, folder: Path, prompts: Sequence[str], answers: FolderAnswers) -> list[str]:
        """Return the answers of the base with the saved networks.

        Raises:
            OSError: the files cannot be read.
        """
        base = load_base(str(self.base.folder))
        load_bottlenecks(base.model, folder)
        return generate_texts(base.model, base.tokenizer, prompts, answers.max_new_tokens)

    def label(self, about: AdapterIdentity, scores: Mapping[str, float], folder: Path) -> None:
        """Write nothing: a manifest names families that are served.

        Raises:
            Nothing.
        """
