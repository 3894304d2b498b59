"""Adapters evaluated side by side: the base and each of them answer the same cases, through our engine.

It knows no corpora, no metrics and no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapters.manifest import MANIFEST_FILE, AdapterManifest, AdapterRole
from adapters.prompting import DEFAULT_TEMPLATE, render
from adapters.strict_json import parse_object
from training.answers import FolderAnswers
from training.base_model import base_folder
from training.errors import EvaluationError
from training.evaluate import lead_3
from training.evaluation import EvaluationCase, EvaluationOptions, EvaluationResult, score_systems

BASE = "base"
LEAD_3 = "lead-3"


def evaluate_adapters(
    base: str | Path,
    adapters: Mapping[str, Sequence[Path]],
    cases: Sequence[EvaluationCase],
    options: EvaluationOptions | None = None,
) -> EvaluationResult:
    """Let the base and each system of adapters answer all cases, and score them.

    Each is asked through its own prompt template, as the server would; the base gets the first system's prompts, so
    that the adapter is the only difference. The last system is LEAD-3, which takes no model at all.

    Args:
        base: the base's folder or hub id.
        adapters: name → folders: one adapter, or a weight adapter and a soft prompt together.
        cases: what to answer, one or more.
        options: how; the defaults if None.

    Raises:
        EvaluationError: no cases, a system called `base` or `lead-3`, or an answer cannot be had as asked.
        TrainingConfigError: no such base.
        AdapterError: an adapter's files are broken, or of another base.
        ValueError: a case has no references.
    """
    if not cases:
        raise EvaluationError("there are no cases to evaluate on")
    for taken in {BASE, LEAD_3} & set(adapters):
        raise EvaluationError(f"the report has a row {taken!r} of its own; give the adapter another name")
    options = options or EvaluationOptions()
    templates = {name: prompt_template(base, folders) for name, folders in adapters.items()}
    first = next(iter(templates.values()), None) or prompt_template(base, ())
    predictions: dict[str, list[str]] = {}
    with FolderAnswers(base, options.max_new_tokens, options.sampling) as answers:
        for name, folders in {BASE: (), **adapters}.items():
            prompts = [render(templates.get(name, first), case.source) for case in cases]
            predictions[name] = answers.answer(folders, prompts)
    predictions[LEAD_3] = [lead_3(case.source) for case in cases]
    return score_systems(predictions, cases, options)


def prompt_template(base: str | Path, adapters: Sequence[Path]) -> str:
    """Return the template the server would wrap a text in.

    It is the weight adapter's; where it brings none, the soft prompt's; else the base's.

    Raises:
        AdapterError: a malformed `medley.json`.
        TrainingConfigError: there is no such base.
    """
    files = [folder / MANIFEST_FILE for folder in adapters if (folder / MANIFEST_FILE).is_file()]
    manifests = [AdapterManifest.from_json(file.read_text("utf-8")) for file in files]
    by_role = sorted(manifests, key=lambda manifest: list(AdapterRole).index(manifest.kind.role))
    own = next((manifest.prompt_template for manifest in by_role if manifest.prompt_template), "")
    file = base_folder(str(base)) / MANIFEST_FILE
    if own or not file.is_file():
        return own or DEFAULT_TEMPLATE
    return str(parse_object(file.read_bytes(), MANIFEST_FILE).get("prompt_template") or DEFAULT_TEMPLATE)
