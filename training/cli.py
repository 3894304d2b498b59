"""`medley train`: arguments only; every method shares one command, and each recipe does its work in its own script."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from adapters.errors import AdapterError
from training.config import BaseRecipe, load_adapter_recipe, load_recipe
from training.errors import TrainingConfigError, TrainingError
from training.methods import METHODS

app = typer.Typer(no_args_is_help=True)
CONFIGS = Path(__file__).parent / "configs"
DEFAULT_DATA = Path("../shared/data")

SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: a.b=value.")]
DataOption = Annotated[Path, typer.Option("--data", envvar="MEDLEY_DATA", help="Folder of the corpora.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Result folder; by default RUN/result.")]
RunOption = Annotated[Path | None, typer.Option("--run", help="Checkpoints, cache, log; by default .runs/NAME.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's latest checkpoint.")]
FromStepOption = Annotated[int | None, typer.Option("--from-step", help="With --resume: from this checkpoint.")]
ConfigOption = Annotated[Path, typer.Option("--config", help="Recipe file.")]
PushOption = Annotated[str | None, typer.Option("--push", metavar="URL", help="Upload the result to this server.")]
AliasOption = Annotated[str | None, typer.Option("--alias", help="With --push: point this alias at it, as canary.")]


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
    from_step: FromStepOption = None,
) -> None:
    """Pre-train the base model."""
    from training.recipes.base import train_base

    with _reported():
        recipe = load_recipe(BaseRecipe, config, set_)
        folder = run or Path(".runs") / recipe.name
        train_base(recipe, data, folder, out or folder / "result", resume=resume, from_step=from_step)


def _method_command(name: str) -> Callable[..., None]:
    """Return the command that trains by the method `name`."""

    def command(
        *,
        config: ConfigOption,
        set_: SetOption = None,
        data: DataOption = DEFAULT_DATA,
        out: OutOption = None,
        run: RunOption = None,
        resume: ResumeOption = False,
        from_step: FromStepOption = None,
        push: PushOption = None,
        alias: AliasOption = None,
    ) -> None:
        with _reported():
            if alias is not None and push is None:
                raise TrainingConfigError("--alias needs --push: aliases are the server's")
            recipe = load_adapter_recipe(name, METHODS, config, set_)

            from training.push import push_adapter
            from training.recipes.adaptation import RunPlaces
            from training.recipes.forms import next_step
            from training.recipes.train import train_adapter

            folder = run or Path(".runs") / recipe.adapter.name
            places = RunPlaces(data, folder, out or folder / "result")
            to_be_pushed = push is not None
            prepared = train_adapter(recipe, places, resume=resume, from_step=from_step, to_be_pushed=to_be_pushed)
            if push is not None:
                typer.echo(push_adapter(places.out, recipe.adapter.name, push, alias))
            typer.echo(next_step(prepared.form, recipe.adapter, places.out))

    return command


for _name, _section in METHODS.items():
    app.command(_name, help=(_section.__doc__ or "").partition("\n")[0])(_method_command(_name))


@contextmanager
def _reported() -> Iterator[None]:
    """Turn a user's mistake into one line and an exit code."""
    try:
        yield
    except (TrainingError, AdapterError) as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise typer.Exit(os.EX_DATAERR) from error
