"""The options by which every command finds its server and proves who calls, said once.

A command takes a client first; :func:`on_server` gives it these options instead, and a client made of them. Knows
neither HTTP nor any command.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Concatenate, ParamSpec

import typer

from server.cli.errors import fail
from server.core.errors import ErrorCode, code_of

if TYPE_CHECKING:  # httpx is loaded when a command runs, not when the help is shown
    from server.cli.client import ServerClient, ServerOptions

DEFAULT_SERVER = "http://127.0.0.1:8000"
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

_P = ParamSpec("_P")


def _server_options(
    *,
    server: Annotated[str, typer.Option(envvar="MEDLEY_SERVER", help="Address of the server.")] = DEFAULT_SERVER,
    key: Annotated[
        str, typer.Option(envvar="MEDLEY_KEY", help="API key; the environment and --key-file hide it from `ps`.")
    ] = "",
    key_file: Annotated[Path | None, typer.Option(help="Read the API key from a file; - reads standard input.")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(envvar="MEDLEY_CA_FILE", help="Authority (PEM) to trust instead of the system's.")
    ] = None,
    client_cert: Annotated[
        Path | None, typer.Option(envvar="MEDLEY_CLIENT_CERT", help="Certificate (PEM) to show the server.")
    ] = None,
    client_key: Annotated[
        Path | None, typer.Option(envvar="MEDLEY_CLIENT_KEY", help="Its private key, if not in the same file.")
    ] = None,
) -> "ServerOptions":
    from server.cli.client import ServerOptions

    if client_key is not None and client_cert is None:
        fail(ErrorCode.INVALID_ARGUMENT, "--client-key needs --client-cert")
    key = _read_key(key_file) if key_file is not None else key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        fail(
            ErrorCode.INVALID_ARGUMENT, "the API key is not one line of printable ASCII; `medley keys create` makes one"
        )
    return ServerOptions(server.rstrip("/"), key, ca_file, client_cert, client_key)


def on_server(command: Callable[Concatenate["ServerClient", _P], None]) -> Callable[_P, None]:
    """Return the command with the server's options in place of its first parameter, the client.

    Our errors, as of a name that is not well formed, end it as the server's do.
    """
    shared = inspect.signature(_server_options).parameters
    _, *own = inspect.signature(command).parameters.values()

    # Without the annotations, which name types that are not imported yet: Typer reads the signature.
    @wraps(command, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        from adapters.errors import AdapterError
        from server.cli.client import ServerClient

        given = {name: kwargs.pop(name) for name in shared}
        try:
            with ServerClient(_server_options(**given)) as client:  # type: ignore[arg-type]
                command(client, *args, **kwargs)
        except AdapterError as error:
            fail(code_of(error), error.message)

    run.__signature__ = inspect.Signature([*own, *shared.values()])  # type: ignore[attr-defined]
    return run


def _read_key(file: Path) -> str:
    try:
        return (typer.get_text_stream("stdin").read() if str(file) == "-" else file.read_text("utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        fail(ErrorCode.INVALID_ARGUMENT, f"cannot read the key file {file}: {error}")
