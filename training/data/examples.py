"""Turn the `data` section of a recipe into cases: read, render, divide, and check against what is measured.

Everything that is wrong is found here, before any training, and told at once. It does not know models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapters.prompting import check_template, render
from training.data.adaptation import Case, Splits, Tokenizes
from training.data.config import DataConfig, DataSource
from training.data.contamination import ContaminationIndex, Document, Leak
from training.data.evaluation_files import read_evaluation_documents
from training.data.lengths import measure_lengths
from training.data.mixing import mixture_counts, mixture_rates
from training.data.problems import ProblemLog
from training.data.report import DataReport, MixtureReport, SourceReport
from training.data.source_examples import Example, SourceParts, add_shots, read_source
from training.data.splits import Splitter
from training.errors import TrainingConfigError, TrainingDataError

_TEXT_ONLY = "{{ text }}"
_POLICIES = {"on_contamination": ("error", "drop", "allow"), "on_over_long": ("cut", "drop", "error")}


@dataclass(frozen=True)
class _SourceCases:
    """One source's cases by part, and the counts its report needs."""

    train: list[Case]
    held_out: list[Case]
    validation: list[Case]
    num_tokens: int = 0
    num_cut: int = 0
    num_too_long: int = 0


@dataclass(frozen=True)
class _Gathered:
    """What the data came to; splits only where there is something to learn from."""

    splits: Splits | None
    report: DataReport
    log: ProblemLog


def load_examples(
    config: DataConfig, data_dir: Path, tokenizer: Tokenizes | None = None, *, prompt_template: str = _TEXT_ONLY
) -> Splits:
    """Read every source of `config`; `prompt_template` is the adapter's, which the server will render as well.

    Without a tokenizer, lengths are not looked at.

    Raises:
        TrainingConfigError: a value in `config` that has no meaning.
        TrainingDataError: problems in the data, all of them in one message.
        PromptTemplateError: a bad prompt template.
    """
    gathered = _gather(config, data_dir, tokenizer, prompt_template)
    gathered.log.raise_if_any()
    assert gathered.splits is not None, "too little data is a problem, too"
    return gathered.splits


def check_data(
    config: DataConfig, data_dir: Path, tokenizer: Tokenizes | None = None, *, prompt_template: str = _TEXT_ONLY
) -> DataReport:
    """Say what `load_examples` would give, and everything that is wrong with the data, without raising for it.

    Raises:
        TrainingConfigError: a value in `config` that has no meaning.
        PromptTemplateError: a bad prompt template.
    """
    return _gather(config, data_dir, tokenizer, prompt_template).report


def _gather(config: DataConfig, data_dir: Path, tokenizer: Tokenizes | None, prompt_template: str) -> _Gathered:
    _check_config(config)
    check_template(prompt_template)
    log = ProblemLog()
    parts = _read_sources(config, data_dir, log)
    leaks = _handle_leaks(config, parts, data_dir, log)
    _add_shots(config, parts, log)
    sources = {name: _source_cases(name, part, prompt_template) for name, part in parts.items()}
    if tokenizer:
        sources = {name: _with_lengths(cases, tokenizer, config.on_over_long, log) for name, cases in sources.items()}
    train = [case for cases in sources.values() for case in cases.train]
    held_out = [case for cases in sources.values() for case in cases.held_out]
    validation = [case for cases in sources.values() for case in cases.validation]
    if not log.count and not (train and held_out and validation):
        advice = "give more data, or other shares in data.split"
        log.add("too little", ", ".join(parts), "too small to train on, choose by and validate on", advice)
    mixture = _mixture_report(config, sources, parts) if train else None
    splits = Splits(train, held_out, validation, mixture) if mixture else None
    return _Gathered(splits, DataReport(mixture, log.problems, tuple(leaks), _warnings(parts)), log)


def _check_config(config: DataConfig) -> None:
    for key, allowed in _POLICIES.items():
        if getattr(config, key) not in allowed:
            raise TrainingConfigError(f"data.{key} is one of {', '.join(allowed)}, not {getattr(config, key)!r}")
    names = [source.name for source in config.sources]
    if not names or len(set(names)) < len(names):
        raise TrainingConfigError("data.sources needs at least one source, and each a name of its own")
    for source in config.sources:
        if not (source.licence.strip() and source.files):
            raise TrainingConfigError(f"source {source.name!r} needs files and the licence they come under")


def _read_sources(config: DataConfig, data_dir: Path, log: ProblemLog) -> dict[str, SourceParts]:
    splitter = Splitter(config.split)
    parts = {}
    for source in config.sources:
        try:
            parts[source.name] = read_source(source, config, splitter, data_dir, log)
        except TrainingDataError as error:
            log.add("template", source.name, str(error), "correct the template, or the recipe that names it")
    return parts


def _handle_leaks(config: DataConfig, parts: dict[str, SourceParts], data_dir: Path, log: ProblemLog) -> list[Leak]:
    """Look for what is measured among what is learned or chosen by, and do what the recipe says."""
    measured = [_document(example) for part in parts.values() for example in part.validation]
    index = ContaminationIndex([*measured, *read_evaluation_documents(config.evaluation_files, data_dir, log)])
    learned = [example for part in parts.values() for example in (*part.train, *part.held_out)]
    leaks = index.leaks([_document(example) for example in learned])
    if config.on_contamination == "error":
        advice = "remove one of the two, or set data.on_contamination to drop (what is learned) or allow"
        for leak in leaks:
            log.add("contamination", leak.train_origin, f"{leak.reason}, as {leak.evaluation_origin}", advice)
    if config.on_contamination == "drop":
        leaking = {leak.train_origin for leak in leaks}
        for part in parts.values():
            before = len(part.train) + len(part.held_out)
            part.train = [example for example in part.train if example.origin not in leaking]
            part.held_out = [example for example in part.held_out if example.origin not in leaking]
            part.num_dropped += before - len(part.train) - len(part.held_out)
    return leaks


def _document(example: Example) -> Document:
    return Document(example.origin, example.fields, example.answers)


def _add_shots(config: DataConfig, parts: dict[str, SourceParts], log: ProblemLog) -> None:
    for name, part in parts.items():
        try:
            add_shots(part, name, config)
        except TrainingDataError as error:
            log.add("too little", name, str(error), "lower data.instruction.num_shots, or give more data")


def _source_cases(name: str, parts: SourceParts, prompt_template: str) -> _SourceCases:
    def case(example: Example, references: tuple[str, ...]) -> Case:
        prompt = render(prompt_template, example.text)
        return Case(example.source, prompt, references, example.origin, name, example.choices)

    return _SourceCases(
        train=[case(example, example.targets) for example in parts.train],
        held_out=[case(example, example.answers) for example in parts.held_out],
        validation=[case(example, example.answers) for example in parts.validation],
    )


def _with_lengths(cases: _SourceCases, tokenizer: Tokenizes, on_over_long: str, log: ProblemLog) -> _SourceCases:
    learned = measure_lengths(cases.train, tokenizer, on_over_long, log)
    if on_over_long == "error":
        measure_lengths([*cases.held_out, *cases.validation], tokenizer, on_over_long, log)
    counts = (learned.num_tokens, learned.num_cut, learned.num_dropped)
    return _SourceCases(learned.cases, cases.held_out, cases.validation, *counts)


def _mixture_report(
    config: DataConfig, sources: dict[str, _SourceCases], parts: dict[str, SourceParts]
) -> MixtureReport:
    sizes = {name: len(cases.train) for name, cases in sources.items()}
    rates, counts = mixture_rates(sizes, config.mixture), mixture_counts(sizes, config.mixture)
    total = sum(counts.values())

    def report(source: DataSource) -> SourceReport:
        cases, part = sources[source.name], parts[source.name]
        return SourceReport(
            name=source.name,
            licence=source.licence,
            num_train=len(cases.train),
            num_held_out=len(cases.held_out),
            num_validation=len(cases.validation),
            rate=rates[source.name],
            realised_rate=counts[source.name] / total,
            num_tokens=cases.num_tokens,
            num_cut=cases.num_cut,
            num_dropped=part.num_dropped + cases.num_too_long,
            num_other_splits=part.num_other_splits,
        )

    return MixtureReport(tuple(report(source) for source in config.sources if source.name in parts), total)


def _warnings(parts: dict[str, SourceParts]) -> tuple[str, ...]:
    return tuple(
        f"source {name!r}: no template uses the columns {', '.join(part.unused_columns)}"
        for name, part in parts.items()
        if part.unused_columns
    )
