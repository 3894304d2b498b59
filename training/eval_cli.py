"""`medley eval`: adapters answer a recipe's validation data side by side, and are scored. Arguments only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.cli import DEFAULT_DATA, DataOption, reported
from training.config import load_adapter_recipe, method_of
from training.errors import TrainingConfigError
from training.methods import METHODS

app = typer.Typer(no_args_is_help=True)

ConfigOption = Annotated[Path, typer.Option("--config", help="Recipe file: whose data to answer, over which base.")]
AdapterOption = Annotated[
    list[str],
    typer.Option("--adapter", metavar="NAME=FOLDER[+FOLDER]", help="An adapter, or a LoRA and a soft prompt together."),
]
NumOption = Annotated[int, typer.Option("--num", min=0, help="Validation cases, from the first; 0 for all.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for report.md and report.json.")]
ExamplesOption = Annotated[int, typer.Option("--examples", min=0, help="Answers shown side by side.")]


@app.callback()
def evaluate() -> None:
    """Score adapters on data with references."""


@app.command()
def adapters(
    *,
    config: ConfigOption,
    adapter: AdapterOption,
    data: DataOption = DEFAULT_DATA,
    num: NumOption = 0,
    out: OutOption = Path("evaluation"),
    examples: ExamplesOption = 5,
) -> None:
    """Let the base and each adapter answer the same cases, as the server would, and report every figure."""
    from training.adapter_evaluation import evaluate_adapters
    from training.data.examples import load_examples
    from training.evaluation import EvaluationCase, EvaluationOptions
    from training.evaluation_report import report_json, report_markdown

    with reported():
        systems = dict(map(_system, adapter))
        recipe = load_adapter_recipe(method_of(METHODS, config), METHODS, config)
        if recipe.data.instruction.chain_of_thought:
            raise TrainingConfigError("whole answers are scored here: set data.instruction.chain_of_thought to false")
        found = load_examples(recipe.data, data).validation
        cases = [EvaluationCase(case.source, case.references) for case in found[: num or None]]
        options = EvaluationOptions(max_new_tokens=recipe.data.max_new_tokens)
        result = evaluate_adapters(recipe.base, systems, cases, options)
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.json").write_text(report_json(result), encoding="utf-8")
        (out / "report.md").write_text(report_markdown(result, examples), encoding="utf-8")
        typer.echo(report_markdown(result, num_examples=0))
        typer.echo(f"{out / 'report.md'} has answers side by side, {out / 'report.json'} every figure of every case")


def _system(argument: str) -> tuple[str, list[Path]]:
    name, equals, folders = argument.partition("=")
    if not (name and equals and folders):
        raise TrainingConfigError(f"--adapter has the form NAME=FOLDER or NAME=FOLDER+FOLDER, not {argument!r}")
    return name, [Path(folder) for folder in folders.split("+")]
