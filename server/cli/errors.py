"""How a command fails: one line on standard error, exit status 1. Knows no command."""

from typing import NoReturn

import typer

from server.core.errors import ErrorCode


def fail(code: ErrorCode | str, message: str) -> NoReturn:
    """End the command.

    Args:
        code: One of our codes, as the server would say it.
        message: What went wrong and what to do next; becomes one printable line.

    Raises:
        typer.Exit: Always.
    """
    typer.echo(f"medley: {printable(str(code))}: {printable(message)}", err=True)
    raise typer.Exit(1)


def printable(text: str) -> str:
    """Return ``text`` as one line that a terminal shows and does not obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(text.split()))
