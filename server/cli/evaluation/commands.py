"""``medley eval replay``, ``report`` and ``import``: arguments only. Other rooms' ``eval`` commands join them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.errors import fail
from server.cli.evaluation.importing import import_references
from server.cli.options import AsJson, on_server
from server.core.errors import ErrorCode

if TYPE_CHECKING:
    from server.cli.client import ServerClient
    from server.cli.evaluation.dataset import Case
    from server.cli.evaluation.records import RecordsFile, ReplayRecord
    from server.cli.evaluation.replay import Replay

app = typer.Typer(
    help="Score adapters: on a running server, on its traffic, or before they are served.", no_args_is_help=True
)
app.command("import")(import_references)

PlotOption = Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Write a picture, too.")]


@app.command()
@on_server
def replay(
    client: "ServerClient",
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines of text and references; .xz too.")],
    *,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REFERENCE[+REFERENCE]", help="name, name:3, name@alias, or two joined by +; several times."
        ),
    ] = None,
    base: Annotated[bool, typer.Option(help="Ask the base, too.")] = True,
    split: Annotated[str | None, typer.Option(help="Only lines of this split.")] = None,
    num: Annotated[int, typer.Option(min=0, help="Cases, from the first; 0 for all.")] = 0,
    metric: Annotated[list[str] | None, typer.Option(help="A metric, as bleu; several times. Default: rouge.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight.")] = 4,
    records: Annotated[
        Path, typer.Option(help="Where every answer is kept; the same command again goes on from it.")
    ] = Path("replay.jsonl"),
    send_references: Annotated[
        bool, typer.Option("--send-references", help="The server scores, too, and counts it as its traffic's.")
    ] = False,
    plot: PlotOption = None,
    as_json: AsJson = False,
) -> None:
    """Play a data set through a running server, with each adapter and the base, and compare their scores."""
    from adapters.scoring.bootstrap import Bootstrap
    from adapters.scoring.plugins import DEFAULT_METRICS, check_metrics, metric_suite
    from server.cli.evaluation.dataset import DatasetError, digest_cases, read_cases
    from server.cli.evaluation.plots import plot_replay
    from server.cli.evaluation.records import Playing, RecordsError, RecordsFile
    from server.cli.evaluation.replay import Replay, ReplayConfig
    from server.cli.evaluation.summary import summarize_replay
    from server.cli.evaluation.tables import print_replay
    from server.cli.tables import print_json

    systems = _systems(adapter or [], with_base=base)
    metrics = check_metrics(metric or DEFAULT_METRICS)
    try:
        cases = read_cases(file, split)
        playing = Playing(digest_cases(cases), max_new_tokens, metrics)
        kept = RecordsFile(records, playing)
        cases = cases[: num or None]
        config = ReplayConfig(concurrency, max_new_tokens, with_references=send_references)
        run = Replay(lambda body: client.attempt("/v1/summarize", body), metric_suite(metrics), config)
        with kept:
            _play(run, kept, systems, cases)
    except (DatasetError, RecordsError) as error:
        fail(ErrorCode.INVALID_ARGUMENT, str(error))
    except OSError as error:
        fail(ErrorCode.INVALID_ARGUMENT, f"cannot write {records}: {error.strerror}")
    summary = summarize_replay(kept.records, systems, len(cases), Bootstrap())
    if as_json:
        print_json({"file": str(file), "metrics": list(metrics), **summary.as_json()})
    else:
        print_replay(summary)
    if plot is not None:
        _draw(lambda: plot_replay(summary, plot), plot)
    if not all(system.num_answered for system in summary.systems):
        raise typer.Exit(1)


@app.command()
@on_server
def report(
    client: "ServerClient",
    *,
    adapter: Annotated[str | None, typer.Option(help="Only this adapter, as name or name:3.")] = None,
    window_s: Annotated[int, typer.Option("--window", min=60, help="Seconds of one window.")] = 3600,
    num_windows: Annotated[int, typer.Option(min=1, help="Windows, up to now.")] = 24,
    metric: Annotated[str, typer.Option(help="What the picture shows.")] = "rougeL",
    plot: PlotOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what a running server's traffic scored, per adapter version."""
    from server.cli.evaluation.plots import plot_reports
    from server.cli.evaluation.report import entries_of, reports_of
    from server.cli.evaluation.tables import print_reports
    from server.cli.tables import print_json

    query = {"window_s": str(window_s), "num_windows": str(num_windows)}
    if adapter is not None:
        query["adapter"] = adapter.partition(":")[0]
    document = client.read("/v1/evaluations", query)
    try:
        reports = reports_of(document, adapter)
    except ValueError as error:
        fail(ErrorCode.INTERNAL, f"{error}; is --server right?")
    if as_json:
        print_json({**document, "evaluations": entries_of(document, adapter)})
    else:
        print_reports(reports)
    if plot is not None:
        _draw(lambda: plot_reports(reports, metric, plot), plot)


def _systems(adapters: list[str], *, with_base: bool) -> list[str]:
    from adapters.registry_records import parse_reference
    from server.cli.evaluation.replay import BASE, adapters_of

    systems = list(dict.fromkeys([*([BASE] if with_base else []), *adapters]))
    for system in systems:
        for reference in adapters_of(system):
            parse_reference(reference)
    if not systems:
        fail(ErrorCode.INVALID_ARGUMENT, "--no-base needs an --adapter")
    return systems


def _play(run: "Replay", kept: "RecordsFile", systems: list[str], cases: "list[Case]") -> None:
    """Send what is not answered yet, case by case, so that all systems meet the same moments of the server."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from server.cli.evaluation.replay import StoppedError, Task

    tasks = [
        Task(system, place, case)
        for place, case in enumerate(cases)
        for system in systems
        if not kept.is_done(system, place)
    ]
    num_failed = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        num_all = len(cases) * len(systems)
        bar = progress.add_task("requests", total=num_all, completed=num_all - len(tasks))

        def advance(record: "ReplayRecord") -> None:
            nonlocal num_failed
            num_failed += not record.is_answered
            progress.update(bar, advance=1, description=f"requests ({num_failed} failed)" if num_failed else "requests")

        try:
            for record in run.run(tasks):
                kept.add(record)
                advance(record)
        except StoppedError as error:
            progress.stop()
            fail(error.code, f"{error.message} (what was answered is kept; the same command again goes on)")
        except KeyboardInterrupt:
            progress.stop()
            fail(ErrorCode.CANCELLED, "stopped; what was answered is kept, and the same command again goes on")


def _draw(draw: Callable[[], None], picture: Path) -> None:
    try:
        draw()
    except ImportError:
        fail(ErrorCode.FAILED_PRECONDITION, "pictures need matplotlib; pip install matplotlib")
    except ValueError as error:
        fail(ErrorCode.FAILED_PRECONDITION, f"no picture: {error}")
    except OSError as error:
        fail(ErrorCode.INVALID_ARGUMENT, f"cannot write {picture}: {error.strerror}")
