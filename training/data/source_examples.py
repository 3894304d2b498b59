"""One source's rows as rendered examples, divided into parts and limited.

It does not know the other sources, the adapter's prompt template or a tokenizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.data.config import DataConfig, DataSource, InstructionConfig
from training.data.instructions import THINK_CUE, with_options, with_rationale, with_shots
from training.data.problems import ProblemLog
from training.data.readers import EMPTY_ADVICE
from training.data.rows import Row, read_rows
from training.data.splits import Splitter, share_of
from training.data.template_files import PLAIN, find_template
from training.data.templates import Template
from training.errors import TrainingConfigError, TrainingDataError


@dataclass(frozen=True)
class Example:
    """One rendered record: its source's fields and their key, the text a caller would send, and the answers.

    `targets` are learned; `answers` are measured against, and have no rationale.
    """

    origin: str
    key: str
    fields: tuple[str, ...]
    text: str
    targets: tuple[str, ...]
    answers: tuple[str, ...]
    choices: tuple[str, ...]

    @property
    def source(self) -> str:
        """The bare text it is about."""
        return "\n".join(self.fields)


@dataclass
class SourceParts:
    """A source's examples by part; what a template left out, and records of other splits, are counted."""

    train: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    validation: list[Example] = field(default_factory=list)
    num_dropped: int = 0
    num_other_splits: int = 0
    unused_columns: tuple[str, ...] = ()


def read_source(
    source: DataSource, config: DataConfig, splitter: Splitter, data_dir: Path, log: ProblemLog
) -> SourceParts:
    """Read, render and divide one source; what is wrong is noted in `log`.

    Raises:
        TrainingConfigError: `columns` maps a field that nothing asks for.
        TrainingDataError: a template cannot be found or used.
    """
    templates = [find_template(name, data_dir) for name in source.templates] or [PLAIN]
    for template in templates:
        _check_template(template, config.instruction)
    fields = frozenset().union(*(template.fields for template in templates))
    if unknown := sorted(source.columns.keys() - fields - {"id"}):
        known = ", ".join(sorted(fields))
        raise TrainingConfigError(f"source {source.name!r}: no template uses the field {unknown[0]!r}; used: {known}")
    found = read_rows(source, fields, data_dir, log)
    parts = SourceParts(unused_columns=found.unused_columns)
    has_validation = any(row.split == source.validation_split for row in found.rows)
    for row in found.rows:
        own = tuple(_text(row.values[name]) for name in templates[0].input_fields)
        key = splitter.key("\n".join(own))
        part = _part(row, key, source.validation_split, splitter, has_validation=has_validation)
        if part == "other":
            parts.num_other_splits += 1
            continue
        number = int(share_of(key, f"{config.split.seed}/template") * len(templates)) if part == "train" else 0
        example = _example(row, (key, own), templates[number], config.instruction, log)
        if example:
            getattr(parts, part).append(example)
        else:
            parts.num_dropped += 1
    _limit(parts, config, splitter)
    return parts


def add_shots(parts: SourceParts, name: str, config: DataConfig) -> None:
    """Put worked examples before every example of the source `name`, drawn from what is learned and never itself.

    Raises:
        TrainingDataError: too few texts to draw from.
    """
    count = config.instruction.num_shots
    if not count:
        return
    pool = sorted({example.key: example for example in parts.train}.values(), key=lambda example: example.key)
    if len(pool) <= count:
        raise TrainingDataError(f"source {name!r} has {len(pool)} texts to learn from; {count} shots need more")

    def shot(example: Example) -> Example:
        rng = random.Random(f"{config.split.seed}/{example.key}")  # noqa: S311 - not for secrets
        drawn = [other for other in rng.sample(pool, count + 1) if other.key != example.key][:count]
        return replace(example, text=with_shots(example.text, [(other.text, other.targets[0]) for other in drawn]))

    parts.train, parts.held_out, parts.validation = (
        [shot(example) for example in part] for part in (parts.train, parts.held_out, parts.validation)
    )


def _check_template(template: Template, instruction: InstructionConfig) -> None:
    wanted = {"answer_choices": instruction.with_options, "rationale": instruction.chain_of_thought}
    for key, is_wanted in wanted.items():
        if is_wanted and not getattr(template, key):
            raise TrainingDataError(f"template {template.name!r} has no `{key}`, which data.instruction asks for")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _part(row: Row, key: str, validation_split: str, splitter: Splitter, *, has_validation: bool) -> str:
    if row.split == validation_split:
        return "validation"
    if row.split != "train":
        return "other"
    if not has_validation and splitter.is_validation(key):
        return "validation"
    return "held_out" if splitter.is_held_out(key) else "train"


def _example(
    row: Row, subject: tuple[str, tuple[str, ...]], template: Template, instruction: InstructionConfig, log: ProblemLog
) -> Example | None:
    try:
        rendered = template.render(row.values)
    except TrainingDataError as error:
        log.add("template", row.origin, str(error), "correct the template, or what it reads")
        return None
    if rendered is None:
        return None
    if not all(text.strip() for text in (rendered.input, *rendered.targets)):
        log.add("empty row", row.origin, f"template {template.name!r} makes an empty input or target", EMPTY_ADVICE)
        return None
    if instruction.with_options and not rendered.choices:
        log.add("empty row", row.origin, f"template {template.name!r} has no answers to offer here", EMPTY_ADVICE)
        return None
    text, targets = rendered.input, rendered.targets
    if instruction.with_options:
        text = with_options(text, rendered.choices)
    if instruction.chain_of_thought:
        text = f"{text}\n\n{THINK_CUE}"
        targets = tuple(with_rationale(rendered.rationale, target) for target in targets)
    return Example(row.origin, *subject, text, targets, rendered.targets, rendered.choices)


def _limit(parts: SourceParts, config: DataConfig, splitter: Splitter) -> None:
    """Keep as many examples as wanted: which ones depends on the texts, not on their order."""
    if config.split.num_held_out:
        ranks = [splitter.rank(example.key) for example in parts.held_out]
        parts.held_out = _lowest(parts.held_out, ranks, config.split.num_held_out)
    if config.max_examples:
        ranks = [share_of(example.key, f"{config.split.seed}/examples") for example in parts.train]
        parts.train = _lowest(parts.train, ranks, config.max_examples)


def _lowest(examples: Sequence[Example], ranks: Sequence[float], count: int) -> list[Example]:
    chosen = sorted(range(len(examples)), key=ranks.__getitem__)[:count]
    return [examples[index] for index in sorted(chosen)]
