"""``medley demo``: starts a server, runs the scenario, shows what came back, stops the server."""

import asyncio
import tempfile
import time
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.clients import WireProtocol
from loadtest.clients.base import ClientError
from loadtest.demo.scenario import DemoResult, Scenario
from loadtest.demo.server import ServerConfig, ServerFailedError, ServerProcess
from loadtest.demo.tables import render_dialogue, render_failures, render_many, render_one
from loadtest.examples import SHIPPED_EXAMPLES, Example, ExampleFileError, read_examples

_UPLOADED_ADAPTER = "tweetsumm"
# Whatever database and store the environment names for a real server are none of the demo's business.
_OWN_DATA = ("--registry-url", "", "--store-url", "")
# Where output is not a terminal there is no width to ask for; the tables need this much.
_PLAIN_WIDTH = 150

app = typer.Typer(help="See it work: a server, one dialogue five ways at once, an upload.", invoke_without_command=True)


@app.callback()
def demo(
    *,
    sample: Annotated[Path, typer.Option(help="JSON lines with 'dialogue', 'summaries'; .xz too.")] = SHIPPED_EXAMPLES,
    num: Annotated[int, typer.Option(min=1, help="How many dialogues to take from the sample.")] = 1,
    split: Annotated[str | None, typer.Option(help="Take only dialogues of this split.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Dialogues in flight; each is ten requests.")] = 2,
) -> None:
    """Start a server on the embedded base and send dialogues five ways at once over HTTP and gRPC.

    Meanwhile one more adapter is uploaded and used. Exit status: 0 if everything worked, 1 if not, 2 for bad arguments.
    """
    try:
        examples = read_examples(sample, split, num)
    except ExampleFileError as error:
        raise typer.BadParameter(str(error)) from error
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    with tempfile.TemporaryDirectory(prefix="medley-demo-") as folder:
        server = ServerProcess(ServerConfig(Path(folder), _OWN_DATA))
        try:
            result = asyncio.run(_run(server, examples, at_once, console))
        except (ServerFailedError, ClientError) as error:
            console.print(f"The demo failed: {error}", style="red", markup=False, highlight=False)
            _print_log(console, server)
            raise typer.Exit(1) from error
        if result.failures:
            console.print(render_failures(result.failures))
            _print_log(console, server)
            raise typer.Exit(1)
    console.print(f"{len(result.all_served)} requests in {result.took_s:.1f} s; the server stopped cleanly.")


async def _run(server: ServerProcess, examples: list[Example], at_once: int, console: Console) -> DemoResult:
    """Run the scenario between the server's start and its end.

    Raises:
        ServerFailedError: If the server does not start or end as it should.
        ClientError: If it refuses an upload.
    """
    console.print("Starting a server on the embedded base …")
    started_s = time.monotonic()
    async with server:
        took_s = time.monotonic() - started_s
        addresses = {protocol: server.address(protocol) for protocol in WireProtocol}
        console.print(
            f"HTTP on {addresses[WireProtocol.HTTP]}, gRPC on {addresses[WireProtocol.GRPC]}: ready in {took_s:.1f} s."
        )
        with as_file(files("adapters") / "library" / _UPLOADED_ADAPTER) as upload_folder:
            result = await Scenario(addresses, upload_folder, at_once).run(examples)
    if len(examples) == 1:
        console.print(render_dialogue(examples[0]), render_one(result))
    else:
        console.print(render_many(result))
    return result


def _print_log(console: Console, server: ServerProcess) -> None:
    console.print("The server's last words:")
    console.print(server.log_tail(), markup=False, highlight=False)
