"""What a recipe says about its data: sources, templates, splits, contamination and mixture. Plain values alone.

It does not know how any of it is read or checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataFile:
    """One file, folder or `hub:<data set id>[#config]`; a relative path starts at the data folder.

    A record says its split in a column of that name, or its data set does. With `split`, only records of that split are
    read, and those that do not say one are of it; without, they are of `train`.
    """

    path: str
    split: str = ""


@dataclass(frozen=True)
class DataSource:
    """Files of one kind, with the licence they come under.

    `columns` maps the fields that a template (or, without one, the plain form `text` and `references`) asks for to the
    columns of the files; a field that is not listed is the column of its own name. Left empty without templates, it
    reads prompt-completion pairs. Of several `templates` each training example draws one; the rest is measured
    with the first.
    """

    name: str
    licence: str
    files: tuple[DataFile, ...]
    columns: dict[str, str] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    validation_split: str = "validation"


@dataclass(frozen=True)
class SplitConfig:
    """How the training split is divided: by a hash of each source text, salted with `seed`.

    `held_out_percent` of it chooses the checkpoint (at most `num_held_out` a source; 0 means all), and
    `validation_percent` is measured on where a source has no validation split of its own.
    """

    seed: str = "medley"
    held_out_percent: float = 3.0
    num_held_out: int = 96
    validation_percent: float = 0.0


@dataclass(frozen=True)
class InstructionConfig:
    """FLAN's choices of how a task is put: examples before it, its options listed after it, a rationale asked for."""

    num_shots: int = 0
    with_options: bool = False
    chain_of_thought: bool = False


@dataclass(frozen=True)
class MixtureConfig:
    """How often each source is drawn: proportional to min(its examples, `cap`), to the power 1 / `temperature`.

    A `cap` of 0 is none.
    """

    cap: int = 0
    temperature: float = 1.0
    seed: int = 13


@dataclass(frozen=True)
class DataConfig:
    """The `data` section of an adapter's recipe.

    `max_examples` keeps that many training examples of each source (0: all). `evaluation_files` and the validation part
    must not be among what is learned: `on_contamination` is `error`, `drop` or `allow`. `on_over_long` says what
    becomes of a prompt over 512 or an answer over 192 tokens: `cut`, `drop` (from what is learned) or `error`.
    """

    sources: tuple[DataSource, ...]
    split: SplitConfig = field(default_factory=SplitConfig)
    instruction: InstructionConfig = field(default_factory=InstructionConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    max_examples: int = 0
    max_new_tokens: int = 64
    evaluation_files: tuple[str, ...] = ()
    on_contamination: str = "error"
    on_over_long: str = "cut"
