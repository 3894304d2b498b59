"""``medley adapters rollout``: try a candidate version on an alias's requests, watch it, and decide by hand."""

from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from server.cli.errors import fail
from server.cli.options import AsJson, on_server
from server.core.errors import ErrorCode

if TYPE_CHECKING:
    from server.api.http.wire.rollouts import RolloutList, RolloutWire
    from server.cli.client import ServerClient

app = typer.Typer(help="Try a version on an alias's requests, as a canary or a shadow.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the adapter.")]
RolloutArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the rollout, as `list` shows it.")]


@app.command()
@on_server
def start(
    client: "ServerClient",
    candidate: Annotated[str, typer.Argument(metavar="NAME:VERSION", help="The version to try, as my-tweets:2.")],
    *,
    alias: Annotated[str, typer.Option(help="Whose requests take part.")] = "stable",
    percent: Annotated[int, typer.Option(help="Share of them that reaches the candidate.")] = 50,
    mode: Annotated[Literal["canary", "shadow"], typer.Option(help="Answer, or run beside and never answer.")] = (
        "canary"
    ),
    metric: Annotated[str, typer.Option(help="Score to compare.")] = "rougeL",
    manual: Annotated[bool, typer.Option("--manual", help="Only say what is found; decide by hand.")] = False,
    min_effect: Annotated[float | None, typer.Option(help="Points the candidate must gain to be promoted.")] = None,
    max_num_requests: Annotated[int | None, typer.Option(help="Requests after which it ends undecided.")] = None,
    max_error_rate_increase: Annotated[float | None, typer.Option(help="Guard rail, as a share of 1.")] = None,
    max_latency_ratio: Annotated[float | None, typer.Option(help="Guard rail, in times the stable's p95.")] = None,
    as_json: AsJson = False,
) -> None:
    """Begin a rollout."""
    from adapters.registry_records import parse_reference
    from server.cli.client import Body

    asked = parse_reference(candidate)
    if asked.version is None:
        fail(ErrorCode.INVALID_ARGUMENT, f"{candidate} is not one version; write {asked.name}:NUMBER")
    body = {
        "alias": alias,
        "candidate": asked.version,
        "percent": percent,
        "mode": mode,
        "metric": metric,
        "automatic": not manual,
        "min_effect": min_effect,
        "max_num_requests": max_num_requests,
        "max_error_rate_increase": max_error_rate_increase,
        "max_latency_ratio": max_latency_ratio,
    }
    given = {key: value for key, value in body.items() if value is not None}
    _print(client.change("POST", f"/v1/adapters/{asked.name}/rollouts", Body(json=given)), as_json=as_json)


@app.command("list")
@on_server
def list_rollouts(client: "ServerClient", name: NameArgument, *, as_json: AsJson = False) -> None:
    """List an adapter's rollouts, the newest first."""
    from adapters.manifest import check_name
    from server.cli.tables import print_json, print_rollouts

    answer = client.read(f"/v1/adapters/{check_name(name)}/rollouts")
    if as_json:
        print_json(answer)
    else:
        print_rollouts(cast("RolloutList", answer))


@app.command()
@on_server
def show(client: "ServerClient", name: NameArgument, rollout: RolloutArgument, *, as_json: AsJson = False) -> None:
    """Show a rollout with its figures and every decision."""
    _print(client.read(_path(name, rollout)), as_json=as_json)


@app.command()
@on_server
def promote(client: "ServerClient", name: NameArgument, rollout: RolloutArgument, *, as_json: AsJson = False) -> None:
    """Point the alias at the candidate, whatever the figures say."""
    _print(client.change("POST", f"{_path(name, rollout)}/promote"), as_json=as_json)


@app.command()
@on_server
def rollback(client: "ServerClient", name: NameArgument, rollout: RolloutArgument, *, as_json: AsJson = False) -> None:
    """End a rollout with the alias where it is."""
    _print(client.change("POST", f"{_path(name, rollout)}/rollback"), as_json=as_json)


def _path(name: str, rollout: str) -> str:
    from adapters.manifest import check_name

    if not rollout.isascii() or not rollout.replace("_", "").isalnum():
        fail(ErrorCode.INVALID_ARGUMENT, f"{rollout} is no id of a rollout; `medley adapters rollout list` shows them")
    return f"/v1/adapters/{check_name(name)}/rollouts/{rollout}"


def _print(answer: dict[str, object], *, as_json: bool) -> None:
    from server.cli.tables import print_json, print_rollout

    if as_json:
        print_json(answer)
    else:
        print_rollout(cast("RolloutWire", answer))
