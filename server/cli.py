"""The ``medley`` command: arguments only. Other rooms' commands come from entry points; heavy imports come late."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

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


@app.command()
def serve(
    *,
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file with settings.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: folder or hub id; the shipped one if left out.")
    ] = None,
    engine: Annotated[Literal["native", "fake"] | None, typer.Option(help="Engine; native if left out.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 if left out.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port, 0 for a free one; 8000 if left out.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port, 0 for a free one; 50051 if left out.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where adapters are kept; .medley if left out.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device; auto if left out.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Serving dtype.")] = None,
    quantization: Annotated[
        Literal["none", "int8", "bitsandbytes-8bit", "bitsandbytes-4bit", "bitsandbytes-4bit-double"] | None,
        typer.Option(help="Keep the base in 8 bits (int8 for speed on a CPU) or 4; none if left out."),
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Most requests in one batch.")] = None,
    ready_file: Annotated[Path | None, typer.Option(help="Written with both addresses once ready.")] = None,
    log_format: Annotated[Literal["json", "console"] | None, typer.Option(help="console if left out.")] = None,
) -> None:
    """Serve over HTTP and gRPC until stopped. What is left out here comes from MEDLEY_* or the file."""
    given: dict[str, object] = {
        "host": host,
        "port": port,
        "grpc_port": grpc_port,
        "data_dir": data_dir,
        "ready_file": ready_file,
        "engine": {
            "model": model,
            "name": engine,
            "device": device,
            "dtype": dtype,
            "quantization": quantization,
            "max_num_seqs": max_num_seqs,
        },
        "log": {"format": log_format},
    }
    _run_server(config, _given_only(given))


@app.command()
def summarize(
    text: Annotated[str | None, typer.Argument(help="The text; - reads standard input.")] = None,
    *,
    file: Annotated[Path | None, typer.Option(help="Read the text from a file.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="name, name:3 or name@alias; twice for a pair.")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="Reference summary to score against.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    server: Annotated[str, typer.Option(help="Address of the server.")] = "http://127.0.0.1:8000",
    output: Annotated[Literal["plain", "table"], typer.Option(help="The summary alone, or with its facts.")] = "plain",
) -> None:
    """Summarize a text on a running server."""
    body = {
        "text": _text_to_summarize(text, file),
        "adapters": adapter or [],
        "references": reference or [],
        "max_new_tokens": max_new_tokens,
    }
    answer = _post(f"{server.rstrip('/')}/v1/summarize", {key: value for key, value in body.items() if value != []})
    if output == "plain":
        typer.echo(answer["summary"])
    else:
        _show_table(answer)


def main() -> None:
    """Run the command line."""
    app()


def _run_server(config: Path | None, given: Mapping[str, object]) -> None:
    from adapters.errors import AdapterError
    from server.core.errors import MedleyError
    from server.observability.logging import configure_logging
    from server.runtime.local import Addresses, serve
    from server.settings import load_settings

    def announce(addresses: Addresses) -> None:
        typer.echo(f"medley is ready: HTTP http://{addresses.http} · gRPC {addresses.grpc}")

    try:
        settings = load_settings(config, given)
        configure_logging(settings.log)
        asyncio.run(serve(settings, announce))
    except (MedleyError, AdapterError) as error:
        _fail(error.message)


def _given_only(options: Mapping[str, object]) -> dict[str, object]:
    nested = {key: _given_only(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    return {key: value for key, value in nested.items() if value is not None and value != {}}


def _text_to_summarize(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        _fail("give a text, - for standard input, or --file")
    if file is None:
        return sys.stdin.read() if text == "-" else str(text)
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"cannot read {file}: {error}")


def _post(url: str, body: Mapping[str, object]) -> dict[str, object]:
    import httpx

    try:
        response = httpx.post(url, json=body, timeout=120)
        answer = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        _fail(f"no answer from {url}: {error}")
    if response.is_error:
        detail = answer.get("error", {})
        _fail(f"{detail.get('code', response.status_code)}: {detail.get('message', 'the server refused')}")
    return dict(answer)


def _show_table(answer: Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for key in ("summary", "request_id", "finish_reason"):
        table.add_row(key, str(answer.get(key, "")))
    adapters = answer.get("adapters")
    if isinstance(adapters, list):
        table.add_row("adapters", " + ".join(f"{use['name']}:{use['version']}" for use in adapters) or "base")
    for key in ("usage", "timings", "scores"):
        for name, value in _figures(answer.get(key)):
            table.add_row(name, value)
    Console().print(table)


def _figures(group: object) -> list[tuple[str, str]]:
    figures = group if isinstance(group, Mapping) else {}
    return [(str(name), f"{value:.1f}" if isinstance(value, float) else str(value)) for name, value in figures.items()]


def _fail(message: str) -> NoReturn:
    typer.echo(f"medley: {message}", err=True)
    raise typer.Exit(1)


def _mount_commands() -> None:
    for command in sorted(entry_points(group="medley.commands"), key=lambda command: command.name):
        try:
            app.add_typer(command.load(), name=command.name)
        except ImportError as error:
            # A room that lacks its packages must not take `medley serve` down with it.
            app.command(command.name, help="Not available here.")(_unavailable(str(error)))


def _unavailable(reason: str) -> Callable[[], None]:
    def explain() -> None:
        _fail(f"not available here: {reason}")

    return explain


_mount_commands()
