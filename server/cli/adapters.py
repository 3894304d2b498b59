"""``medley adapters``: upload, list, show, promote, roll back and delete adapters on a running server."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from server.cli import rollouts
from server.cli.errors import fail
from server.cli.options import AsJson, on_server
from server.core.errors import ErrorCode

if TYPE_CHECKING:
    from server.api.http.wire.adapters import AdapterList, AdapterWire, AuditList, VersionWire
    from server.cli.client import ServerClient

app = typer.Typer(help="Adapters of a running server: upload, list, promote, roll back, delete.", no_args_is_help=True)
app.add_typer(rollouts.app, name="rollout")

AliasName = Annotated[str, typer.Option("--alias", help="The alias.")]
VersionArgument = Annotated[str, typer.Argument(metavar="NAME:VERSION", help="A version, as my-tweets:2.")]


@app.command()
@on_server
def push(
    client: "ServerClient",
    what: Annotated[
        str, typer.Argument(metavar="FOLDER|ARCHIVE|SOURCE", help="PEFT folder, tar or zip of one, or hf://owner/repo.")
    ],
    *,
    name: Annotated[str, typer.Option(help="Name of the adapter; the upload becomes its next version.")],
    alias: Annotated[str | None, typer.Option(help="Point this alias at it.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag of the version; may be given several times.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter as the next version of a name, and wait until it is ready."""
    from adapters.manifest import check_name
    from server.cli.tables import print_json, print_pushed
    from server.cli.upload import upload_body

    path = f"/v1/adapters/{check_name(name)}/versions"
    try:
        with upload_body(what, alias, tag or []) as body:
            answer = client.change("POST", path, body)
    except OSError as error:
        fail(
            ErrorCode.INVALID_ARGUMENT, f"cannot read {what}: {error.strerror}; give a PEFT folder, an archive or a URL"
        )
    if as_json:
        print_json(answer)
    else:
        print_pushed(cast("VersionWire", answer), alias)


@app.command("list")
@on_server
def list_adapters(
    client: "ServerClient",
    *,
    tag: Annotated[str | None, typer.Option(help="Only adapters that have a version with this tag.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the adapters."""
    from server.cli.tables import print_adapters, print_json

    answer = client.read("/v1/adapters", {"tag": tag} if tag else None)
    if as_json:
        print_json(answer)
    else:
        print_adapters(cast("AdapterList", answer))


@app.command()
@on_server
def show(
    client: "ServerClient",
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="An adapter, or one version of it.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show an adapter with its versions and aliases, or one version with its card."""
    from adapters.registry_records import parse_reference
    from server.cli.tables import print_adapter, print_json, print_version

    asked = parse_reference(reference)
    path = f"/v1/adapters/{asked.name}"
    if asked.alias is not None:
        fail(ErrorCode.INVALID_ARGUMENT, f"{reference} names an alias; `medley adapters show {asked.name}` lists them")
    if asked.version is None:
        adapter = client.read(path)
        if as_json:
            print_json(adapter)
        else:
            print_adapter(cast("AdapterWire", adapter))
        return
    version = client.read(f"{path}/versions/{asked.version}")
    if as_json:
        print_json(version)
    else:
        print_version(cast("VersionWire", version), client.read_text(f"{path}/versions/{asked.version}/card"))


@app.command()
@on_server
def promote(
    client: "ServerClient", version: VersionArgument, *, alias: AliasName = "stable", as_json: AsJson = False
) -> None:
    """Point an alias at a version; requests that name the alias, or only the adapter, get it from then on."""
    from adapters.manifest import check_name
    from server.cli.client import Body
    from server.cli.tables import print_alias, print_json

    name, number = _one_version(version)
    answer = client.change("PUT", f"/v1/adapters/{name}/aliases/{check_name(alias)}", Body(json={"version": number}))
    if as_json:
        print_json(answer)
    else:
        print_alias(cast("AdapterWire", answer), alias)


@app.command()
@on_server
def rollback(
    client: "ServerClient",
    name: Annotated[str, typer.Argument(help="Name of the adapter.")],
    *,
    alias: AliasName = "stable",
    as_json: AsJson = False,
) -> None:
    """Point an alias back at its previous target that is still ready."""
    from adapters.manifest import check_name
    from server.cli.client import Body
    from server.cli.tables import print_alias, print_json

    answer = client.change("POST", f"/v1/adapters/{check_name(name)}/rollback", Body(json={"alias": alias}))
    if as_json:
        print_json(answer)
    else:
        print_alias(cast("AdapterWire", answer), alias)


@app.command("rm")
@on_server
def remove(
    client: "ServerClient",
    version: VersionArgument,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Drop the aliases that point at it, and wait for running requests.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a version; refused while an alias or a running request holds it."""
    from server.cli.tables import print_json

    name, number = _one_version(version)
    query = {"force": "true"} if force else None
    answer = client.change("DELETE", f"/v1/adapters/{name}/versions/{number}", query=query)
    if as_json:
        print_json(answer)
    else:
        typer.echo(f"{name}:{number} is deleted")


@app.command()
@on_server
def audit(
    client: "ServerClient",
    name: Annotated[str | None, typer.Argument(help="Only changes of this adapter.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most entries, the newest first.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Show who changed what, when and from where."""
    from adapters.manifest import check_name
    from server.cli.tables import print_audit, print_json

    path = "/v1/audit" if name is None else f"/v1/adapters/{check_name(name)}/audit"
    answer = client.read(path, {"limit": str(limit)})
    if as_json:
        print_json(answer)
    else:
        print_audit(cast("AuditList", answer))


def _one_version(text: str) -> tuple[str, int]:
    from adapters.registry_records import parse_reference

    reference = parse_reference(text)
    if reference.version is None:
        fail(ErrorCode.INVALID_ARGUMENT, f"{text} is not one version; write {reference.name}:NUMBER")
    return reference.name, reference.version
