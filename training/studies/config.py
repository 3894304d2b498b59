"""What each study can be told: frozen dataclasses read by the same strict loader as the recipes.

It knows what can be set and the defaults. It does not know how anything is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from training.config import load_recipe

BASE = "adapters/library/medley-mini"


class StudyConfig(Protocol):
    """What the configs of all studies have in common."""

    @property
    def quick(self) -> tuple[str, ...]:
        """Overrides, as `--set` takes them, that make the study a matter of minutes."""


ConfigT = TypeVar("ConfigT", bound=StudyConfig)


@dataclass(frozen=True)
class StudyPlaces:
    """Folders of a study: the corpora it reads, and the report with the runs behind it."""

    data: Path
    out: Path


@dataclass(frozen=True)
class MethodRun:
    """One row of a table: a method of `medley train`, the recipe file it reads, and overrides of that recipe.

    `method` may be `base`: nothing is trained, and the base answers with the recipe's prompt.
    """

    name: str
    method: str
    recipe: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryShape:
    """A batch as it is padded: rows, encoder length and decoder length, in tokens.

    A model without an encoder reads both as one sequence.
    """

    rows: int
    source: int
    target: int


@dataclass(frozen=True)
class MemoryConfig:
    """`medley study memory`: `model` is a folder with a `config.json`, or a hub id; `device` is where it measures."""

    model: str = BASE
    methods: tuple[str, ...] = ("full", "lora", "qlora", "prompt")
    shapes: tuple[MemoryShape, ...] = (MemoryShape(8, 256, 64), MemoryShape(16, 512, 64))
    dtype: str = "float32"
    rank: int = 32
    target_modules: tuple[str, ...] = ("q", "k", "v", "o", "wi_0", "wi_1", "wo")
    num_virtual_tokens: int = 20
    gradient_checkpointing: bool = False
    measured: tuple[str, ...] = ("full", "lora")
    device: str = "cpu"
    quick: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeighboursConfig:
    """`medley study prompt-neighbours`: `init_text` is what the soft prompt started from, where that is known."""

    adapter: str = "adapters/library/dialogsum-prompt"
    base: str = BASE
    num_neighbours: int = 5
    init_text: str = ""
    quick: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompareConfig:
    """`medley study compare`: `order` names rows from the one expected worst to the one expected best."""

    runs: tuple[MethodRun, ...]
    seeds: tuple[int, ...] = (17, 18, 19)
    order: tuple[str, ...] = ()
    num_cases: int = 500
    quick: tuple[str, ...] = ()


@dataclass(frozen=True)
class RankConfig:
    """`medley study rank-study`: alpha grows with the rank, so that the scaling alpha / rank stays the same."""

    recipe: str
    overrides: tuple[str, ...] = ()
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    alpha_per_rank: int = 2
    seeds: tuple[int, ...] = (17,)
    num_cases: int = 500
    quick: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A way to forget less, `l2sp`, `ewc`, `kl` or `replay`, and the strengths to try.

    A strength is the λ of a penalty, or the share of the examples that are replayed; 0 is plain fine-tuning.
    """

    mitigation: str
    strengths: tuple[float, ...]


@dataclass(frozen=True)
class ForgettingConfig:
    """`medley study forgetting`: `tasks` and `held_out` are recipe files, whose data and prompt template are read.

    Tasks are learned in their order by one set of weights, each for the steps of the method's own recipe; held-out ones
    are only ever measured. `swept` names the row of `methods` that the sweeps are run on.
    """

    tasks: tuple[str, ...]
    held_out: tuple[str, ...]
    methods: tuple[MethodRun, ...]
    seeds: tuple[int, ...] = (17,)
    num_cases: int = 48
    num_fisher_examples: int = 64
    swept: str = "full"
    sweeps: tuple[Sweep, ...] = ()
    quick: tuple[str, ...] = ()


def load_study(kind: type[ConfigT], path: Path, overrides: list[str], *, quick: bool) -> ConfigT:
    """Read a study's file; with `quick`, its own short form, before the caller's overrides.

    Raises:
        TrainingConfigError: unreadable file, unknown key, or a value of the wrong kind.
    """
    config = load_recipe(kind, path, overrides)
    return load_recipe(kind, path, [*config.quick, *overrides]) if quick else config
