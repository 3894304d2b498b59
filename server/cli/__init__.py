"""The ``medley`` command: arguments only, one file for each group of commands.

Other rooms' commands come from entry points. Heavy imports come late, so that ``medley --help`` stays fast.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.metadata import version as distribution_version
from typing import Annotated

import typer

from server.cli import adapters, keys, serve, summarize
from server.cli.errors import fail
from server.core.errors import ErrorCode

app = typer.Typer(
    name="medley",
    help="One frozen base model; a medley of adapters over it, chosen per request.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.callback(invoke_without_command=True)
def medley(*, version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Serve one frozen base model with a medley of adapters, chosen per request."""
    if version:
        typer.echo(f"medley {distribution_version('medley')}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()


def _mount_commands() -> None:
    for command in sorted(entry_points(group="medley.commands"), key=lambda command: command.name):
        try:
            app.add_typer(command.load(), name=command.name)
        except ImportError as error:
            # A room that lacks its packages must not take `medley serve` down with it.
            app.command(command.name, help="Not available here.")(_unavailable(str(error)))


def _unavailable(reason: str) -> Callable[[], None]:
    def explain() -> None:
        fail(ErrorCode.FAILED_PRECONDITION, f"not available here: {reason}")

    return explain


app.command()(serve.serve)
app.command()(summarize.summarize)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
_mount_commands()
