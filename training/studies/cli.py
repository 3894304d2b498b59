"""`medley study`: arguments only; each study does its work in its own module."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import AdapterError
from training.errors import TrainingError
from training.studies.config import (
    CompareConfig,
    ForgettingConfig,
    MemoryConfig,
    NeighboursConfig,
    RankConfig,
    StudyConfig,
    StudyPlaces,
    load_study,
)

app = typer.Typer(no_args_is_help=True)
CONFIGS = Path(__file__).parents[1] / "configs" / "studies"

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Study file; by default the shipped one.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key: a.b=value.")]
DataOption = Annotated[Path, typer.Option("--data", envvar="MEDLEY_DATA", help="Folder of the corpora.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Report and runs; by default .runs/studies/NAME.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="The file's own short form: minutes.")]


@dataclass(frozen=True)
class _Study:
    """A study: its config, the module whose `run` does it, and what it says of itself."""

    kind: type[StudyConfig]
    module: str
    help: str


_STUDIES = {
    "memory": _Study(MemoryConfig, "memory", "Plan the memory of a training step, and measure beside it."),
    "prompt-neighbours": _Study(NeighboursConfig, "neighbours", "Nearest words of each virtual token."),
    "forgetting": _Study(ForgettingConfig, "forgetting", "What is lost of other tasks, and what holds it back."),
    "compare": _Study(CompareConfig, "compare", "Methods side by side: quality and cost."),
    "rank-study": _Study(RankConfig, "ranks", "LoRA by rank."),
}


@app.callback()
def study() -> None:
    """Set training runs side by side; each study ends in a report."""


def _command(name: str) -> Callable[..., None]:
    one = _STUDIES[name]

    def command(
        *,
        config: ConfigOption = None,
        set_: SetOption = None,
        data: DataOption = Path("../shared/data"),
        out: OutOption = None,
        quick: QuickOption = False,
    ) -> None:
        try:
            settings = load_study(one.kind, config or CONFIGS / f"{name}.yaml", set_ or [], quick=quick)
            folder = out or Path(".runs") / "studies" / (f"{name}-quick" if quick else name)
            report = import_module(f"training.studies.{one.module}").run(settings, StudyPlaces(data, folder))
        except (TrainingError, AdapterError) as error:
            typer.secho(f"error: {error}", err=True, fg="red")
            raise typer.Exit(os.EX_DATAERR) from error
        typer.echo(f"report: {report}")

    return command


for _name, _one in _STUDIES.items():
    app.command(_name, help=_one.help)(_command(_name))
