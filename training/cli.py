"""`medley train`: arguments only; each recipe does its work in its own script."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import AdapterError
from training.config import BaseRecipe, LoraRecipe, PromptRecipe, load_recipe
from training.errors import TrainingError

app = typer.Typer(no_args_is_help=True)
CONFIGS = Path(__file__).parent / "configs"
DEFAULT_DATA = Path("../shared/data")

SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: a.b=value.")]
DataOption = Annotated[Path, typer.Option("--data", envvar="MEDLEY_DATA", help="Folder of the corpora.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Result folder; by default RUN/result.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="Checkpoints, cache, log; by default .runs/NAME.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")]
ConfigOption = Annotated[Path, typer.Option("--config", help="Recipe file.")]


@app.callback()
def train() -> None:
    """Train the embedded base and its adapters."""


@app.command()
def base(
    *,
    config: ConfigOption = CONFIGS / "base.yaml",
    set_: SetOption = None,
    data: DataOption = DEFAULT_DATA,
    out: OutOption = None,
    run: RunOption = None,
    resume: ResumeOption = False,
) -> None:
    """Pre-train the base model."""
    from training.recipes.base import train_base

    with _reported():
        recipe = load_recipe(BaseRecipe, config, set_)
        folder = run or Path(".runs") / recipe.name
        train_base(recipe, data, folder, out or folder / "result", resume=resume)


@app.command()
def lora(
    *,
    config: ConfigOption,
    set_: SetOption = None,
    data: DataOption = DEFAULT_DATA,
    out: OutOption = None,
    run: RunOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train a LoRA on the base."""
    from training.recipes.adaptation import RunPlaces
    from training.recipes.lora import train_lora

    with _reported():
        recipe = load_recipe(LoraRecipe, config, set_)
        folder = run or Path(".runs") / recipe.adapter.name
        train_lora(recipe, RunPlaces(data, folder, out or folder / "result"), resume=resume)


@app.command()
def prompt(
    *,
    config: ConfigOption,
    set_: SetOption = None,
    data: DataOption = DEFAULT_DATA,
    out: OutOption = None,
    run: RunOption = None,
    resume: ResumeOption = False,
) -> None:
    """Train a soft prompt on the base."""
    from training.recipes.adaptation import RunPlaces
    from training.recipes.prompt import train_prompt

    with _reported():
        recipe = load_recipe(PromptRecipe, config, set_)
        folder = run or Path(".runs") / recipe.adapter.name
        train_prompt(recipe, RunPlaces(data, folder, out or folder / "result"), resume=resume)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn a user's mistake into one line and an exit code."""
    try:
        yield
    except (TrainingError, AdapterError) as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(os.EX_DATAERR) from error
