"""``medley keys``: make, list and revoke API keys, straight in the server's database; running servers see it at once.

Knows no server: whoever can read the database may make keys, so these commands need no key.
"""

import getpass
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.errors import fail
from server.cli.options import AsJson
from server.core.errors import ErrorCode
from server.core.principal import EVERY_NAME, Scope

if TYPE_CHECKING:
    from adapters.registry_records import Change
    from server.access.api_key import ApiKey
    from server.access.keys import KeyRing

app = typer.Typer(help="API keys of a server: create, list, revoke.", no_args_is_help=True)

_UNIT_S = {"m": 60, "h": 3600, "d": 86400}

Config = Annotated[Path | None, typer.Option(help="The server's file of settings, if it has one.")]
DataDir = Annotated[Path | None, typer.Option(help="The server's data directory; .medley if left out.")]
RegistryUrl = Annotated[str | None, typer.Option(help="The server's database, if it is not in the data directory.")]


@app.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="Whom or what the key is for.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; may be given several times.")],
    adapters: Annotated[
        list[str] | None, typer.Option(help="Pattern of the adapter names it sees, as 'team-a-*'; all if left out.")
    ] = None,
    max_requests_per_minute: Annotated[int, typer.Option(min=0, help="0 for any number.")] = 0,
    max_concurrent: Annotated[int, typer.Option(min=0, help="Most requests at once; 0 for any number.")] = 0,
    first_priority: Annotated[int, typer.Option(help="The earliest priority its requests may have.")] = 0,
    expires_in: Annotated[str | None, typer.Option(help="As 30d, 12h or 90m; never if left out.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    registry_url: RegistryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    from server.cli.tables import print_json

    lasts_s = None if expires_in is None else _seconds(expires_in)
    with _key_ring(config, data_dir, registry_url) as ring:
        is_first = not ring.any_keys
        token, key = ring.create(
            name,
            scopes=frozenset(scope),
            patterns=tuple(adapters or EVERY_NAME),
            max_requests_per_minute=max_requests_per_minute,
            max_concurrent=max_concurrent,
            first_priority=first_priority,
            expires_s=None if lasts_s is None else time.time() + lasts_s,
            change=_change(),
        )
    if as_json:
        print_json({"token": token, "key": _key_wire(key)})
    else:
        typer.echo(token)
    typer.echo(f"medley: made key {key.key_id}; it is shown this once only, so keep it safe", err=True)
    if is_first:
        typer.echo("medley: it is the first one: from now on every call to the server needs a key", err=True)


@app.command("list")
def list_keys(
    *, config: Config = None, data_dir: DataDir = None, registry_url: RegistryUrl = None, as_json: AsJson = False
) -> None:
    """List the keys, revoked and expired ones included; secrets are not kept and so not shown."""
    from server.cli.tables import print_json, print_keys

    with _key_ring(config, data_dir, registry_url) as ring:
        keys = ring.list()
    if as_json:
        print_json({"keys": [_key_wire(key) for key in keys]})
    else:
        print_keys(keys, time.time())


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `medley keys list` shows it; not the key.")],
    *,
    config: Config = None,
    data_dir: DataDir = None,
    registry_url: RegistryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key; running servers refuse it within a second."""
    from server.cli.tables import print_json

    with _key_ring(config, data_dir, registry_url) as ring:
        key = ring.revoke(key_id, _change())
    if as_json:
        print_json(_key_wire(key))
    else:
        typer.echo(f"key {key.key_id} ({key.name}) is revoked")


@contextmanager
def _key_ring(config: Path | None, data_dir: Path | None, registry_url: str | None) -> Iterator["KeyRing"]:
    """Open the keys where a server with these settings would; errors end the command."""
    from adapters.errors import AdapterError
    from server.access.keys import KeyRing
    from server.cli.serve import given_only
    from server.core.errors import MedleyError, code_of
    from server.settings import load_settings

    try:
        settings = load_settings(config, given_only({"data_dir": data_dir, "registry": {"url": registry_url}}))
        with closing(KeyRing(settings.registry_url)) as ring:
            yield ring
    except (MedleyError, AdapterError) as error:
        fail(code_of(error), error.message)


def _change() -> "Change":
    from adapters.registry_records import Change

    return Change(who=f"cli:{getpass.getuser()}")


def _key_wire(key: "ApiKey") -> dict[str, object]:
    """Return what a script may want to know of a key; its secret is not part of it."""
    from server.cli.tables import key_state

    wire = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(key).items()}
    return wire | {"state": key_state(key, time.time())}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if match is None:
        fail(ErrorCode.INVALID_ARGUMENT, f"--expires-in takes a number and m, h or d, as 30d, not {text}")
    return int(match[1]) * _UNIT_S[match[2]]
