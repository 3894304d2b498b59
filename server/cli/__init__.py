"""The ``medley`` command: arguments only, one file for each group of commands.

Other rooms' commands come from entry points; those of a group that is here already stand beside ours. Heavy imports
come late, so that ``medley --help`` stays fast.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.metadata import version as distribution_version
from typing import Annotated

import typer

from server.cli import adapters, keys, serve, summarize
from server.cli.errors import fail
from server.cli.evaluation import importing as evaluation
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
    ours = {group.name: group.typer_instance for group in app.registered_groups}
    for command in sorted(entry_points(group="medley.commands"), key=lambda command: command.name):
        group = ours.get(command.name)
        try:
            if group is None:
                app.add_typer(command.load(), name=command.name)
            else:
                _join(group, command.load())
        except ImportError as error:
            if group is not None:
                group.info.epilog = f"More commands are not available here: {error}"
                continue
            # A room that lacks its packages must not take `medley serve` down with it.
            app.command(command.name, help="Not available here.")(_unavailable(str(error)))


def _join(group: typer.Typer, room: typer.Typer) -> None:
    """Put a room's commands beside those of a group; add_typer would warn of the room's own help, which is lost."""
    group.registered_commands += room.registered_commands
    group.registered_groups += room.registered_groups


def _unavailable(reason: str) -> Callable[[], None]:
    def explain() -> None:
        fail(ErrorCode.FAILED_PRECONDITION, f"not available here: {reason}")

    return explain


app.command()(serve.serve)
app.command()(summarize.summarize)
app.add_typer(adapters.app, name="adapters")
app.add_typer(evaluation.app, name="eval")
app.add_typer(keys.app, name="keys")
_mount_commands()
