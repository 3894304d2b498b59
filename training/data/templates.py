"""One prompt template: what it asks for, and how it turns a record's fields into an input and a target.

Every format is read into this one (see `template_files`). Its input is the *text* a caller of the served adapter would
send; the adapter's own prompt template, which the server renders too (:mod:`adapters.prompting`), comes around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.data.template_sandbox import MARK, SEPARATOR, fields_of, render_source
from training.errors import TrainingDataError

_CHOICES = "answer_choices"
_REFERENCE = "reference"


@dataclass(frozen=True)
class Rendered:
    """What a template makes of one record: the input, a target for each reference, and the answers offered."""

    input: str
    targets: tuple[str, ...]
    choices: tuple[str, ...]
    rationale: str


@dataclass(frozen=True)
class Template:
    """A template of any format, as Jinja.

    With `target` empty, `input` holds both, parted by `|||`. A target that prints `reference` is rendered once for
    each text of the record's field `references`.
    """

    name: str
    task: str
    input: str
    target: str = ""
    answer_choices: str = ""
    rationale: str = ""

    def __post_init__(self) -> None:
        if self.target and SEPARATOR in self.input + self.target:
            raise TrainingDataError(f"template {self.name!r} has a target, so `{SEPARATOR}` has no meaning in it")

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The record fields its input prints, in the order they first occur.

        Where `|||` stands inside a condition, input and target cannot be told apart: all of its fields.

        Raises:
            TrainingDataError: it does not parse, or does more than a template may.
        """
        try:
            names = fields_of(self.name, self.input.split(SEPARATOR)[0])
        except TrainingDataError:
            names = fields_of(self.name, self.input)
        return tuple(name for name in names if name != _CHOICES)

    @property
    def fields(self) -> frozenset[str]:
        """Every record field it needs.

        Raises:
            TrainingDataError: it does not parse, or does more than a template may.
        """
        found = {name for part in self._parts for name in fields_of(self.name, part)} - {_CHOICES}
        return frozenset({"references" if name == _REFERENCE else name for name in found})

    @property
    def _parts(self) -> tuple[str, ...]:
        return tuple(part for part in (self.input, self.target, self.answer_choices, self.rationale) if part)

    def render(self, values: Mapping[str, object]) -> Rendered | None:
        """Return the input and target of one record, or None if a `|||` template leaves this record out.

        Args:
            values: field values: texts, numbers, lists or mappings; `references` is a tuple of texts.

        Raises:
            TrainingDataError: a field is missing, or rendering fails or is too long.
        """
        context = dict(values)
        choices = self._choices(context)
        if choices:
            context[_CHOICES] = list(choices)
        text = render_source(self.name, self.input, context)
        rationale = render_source(self.name, self.rationale, context).strip() if self.rationale else ""
        if self.target:
            return Rendered(text, self._targets(context), choices, rationale)
        if any(MARK in str(value) for value in values.values()):
            raise TrainingDataError(f"the data hold the control character {MARK!r}, which parts input and target")
        parts = [part.strip() for part in text.split(MARK)]
        if not any(parts):
            return None
        if len(parts) < 2:
            raise TrainingDataError(f"template {self.name!r} has no `{SEPARATOR}` between input and target here")
        return Rendered(parts[0], tuple(parts[1:]), choices, rationale)

    def _choices(self, context: Mapping[str, object]) -> tuple[str, ...]:
        listed = render_source(self.name, self.answer_choices, context) if self.answer_choices else ""
        return tuple(choice.strip() for choice in listed.split(MARK)) if listed.strip() else ()

    def _targets(self, context: Mapping[str, object]) -> tuple[str, ...]:
        if _REFERENCE not in fields_of(self.name, self.target):
            return (render_source(self.name, self.target, context),)
        references = context.get("references")
        assert isinstance(references, tuple), "the caller checks the field `references`"
        return tuple(
            render_source(self.name, self.target, {**context, _REFERENCE: reference}) for reference in references
        )
