"""``medley summarize``: one text to a running server, its summary back."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from server.cli.errors import fail
from server.cli.options import AsJson, on_server
from server.core.errors import ErrorCode

if TYPE_CHECKING:
    from server.cli.client import ServerClient


@on_server
def summarize(
    client: "ServerClient",
    text: Annotated[str | None, typer.Argument(help="The text; - reads standard input.")] = None,
    *,
    file: Annotated[Path | None, typer.Option(help="Read the text from a file.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="name, name:3 or name@alias; twice for a pair.")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="Reference summary to score against.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    priority: Annotated[int, typer.Option(help="From -2, served before others, to 2, behind them.")] = 0,
    output: Annotated[Literal["plain", "table"], typer.Option(help="The summary alone, or with its facts.")] = "plain",
    as_json: AsJson = False,
) -> None:
    """Summarize a text on a running server."""
    from server.cli.tables import print_json, print_summary

    body = {
        "text": _text_to_summarize(text, file),
        "adapters": adapter or [],
        "references": reference or [],
        "max_new_tokens": max_new_tokens,
        "priority": priority,
    }
    answer = client.ask("/v1/summarize", {key: value for key, value in body.items() if value != []})
    if as_json:
        print_json(answer)
    elif output == "table":
        print_summary(answer)
    else:
        typer.echo(answer["summary"])


def _text_to_summarize(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        fail(ErrorCode.INVALID_ARGUMENT, "give a text, - for standard input, or --file")
    if file is None:
        return sys.stdin.read() if text == "-" else str(text)
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        fail(ErrorCode.INVALID_ARGUMENT, f"cannot read {file}: {error}")
