"""Answers of a server as tables for people, or as one JSON document for scripts.

What an adapter's maker wrote is shown and never obeyed: neither markup nor a terminal's control codes act. Knows no
server and no options.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.cli.errors import printable

if TYPE_CHECKING:
    from server.access.api_key import ApiKey
    from server.api.http.wire.adapters import AdapterList, AdapterWire, AuditList, VersionWire
    from server.api.http.wire.rollouts import ArmWire, RolloutList, RolloutWire

# Where output is not a terminal there is no width to ask for.
_PLAIN_WIDTH = 160
_SHORT_DIGEST = 12


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, indent=2))


def print_pushed(version: "VersionWire", alias: str | None) -> None:
    """Print what became of an upload."""
    pointed = f", {alias} points at it" if alias else ""
    typer.echo(f"{version['name']}:{version['version']} is {version['state']}{pointed}")
    typer.echo(f"digest {version['digest']}")


def print_alias(adapter: "AdapterWire", alias: str) -> None:
    """Print where an alias points."""
    target = adapter["aliases"].get(alias)
    typer.echo(f"{adapter['name']}@{alias} is {adapter['name']}:{target}" if target else f"there is no {alias} now")


def print_adapters(answer: "AdapterList") -> None:
    """Print a line for each adapter."""
    table = _table("name", "kind", "newest", "ready versions", "aliases", "created", "size", "tags")
    for adapter in answer["adapters"]:
        ready = [version for version in adapter["versions"] if version["state"] == "ready"]
        newest = ready[-1] if ready else None
        _add(
            table,
            adapter["name"],
            newest["kind"] if newest else "",
            str(newest["version"]) if newest else "",
            str(len(ready)),
            _aliases(adapter),
            _time(newest["created_s"]) if newest else "",
            _size(newest["size_bytes"]) if newest else "",
            " ".join(sorted({tag for version in ready for tag in version["tags"]})),
        )
    _print(table, "no adapters; `medley adapters push` uploads one")


def print_adapter(adapter: "AdapterWire") -> None:
    """Print an adapter's versions, the newest first."""
    table = _table("version", "state", "kind", "aliases", "created", "size", "digest", "tags", "description")
    for version in reversed(adapter["versions"]):
        pointing = sorted(alias for alias, target in adapter["aliases"].items() if target == version["version"])
        _add(
            table,
            f"{version['name']}:{version['version']}",
            f"{version['state']} ({version['reason']})" if version["reason"] else version["state"],
            version["kind"],
            " ".join(pointing),
            _time(version["created_s"]),
            _size(version["size_bytes"]),
            version["digest"][:_SHORT_DIGEST],
            " ".join(version["tags"]),
            version["description"],
        )
    _print(table, f"{adapter['name']} has no versions")


def print_version(version: "VersionWire", card: str) -> None:
    """Print all facts of a version, then its card."""
    table = Table(show_header=False)
    shown = dict(version) | {
        "size_bytes": _size(version["size_bytes"]),
        "created_s": _time(version["created_s"]),
        "tags": " ".join(version["tags"]),
        "scores": " ".join(f"{name}={value:g}" for name, value in version["scores"].items()),
        "metrics": " ".join(version["metrics"]),
    }
    for fact, value in shown.items():
        if value not in ("", 0):
            _add(table, fact.removesuffix("_s").removesuffix("_bytes"), str(value))
    _print(table, "")
    for line in card.splitlines():
        typer.echo(printable(line))


def print_audit(answer: "AuditList") -> None:
    """Print a line for each change."""
    table = _table("time", "who", "from", "action", "adapter", "alias", "digest", "detail")
    for record in answer["records"]:
        version = f":{record['version']}" if record["version"] else ""
        _add(
            table,
            _time(record["time_s"]),
            record["who"],
            record["origin"],
            record["action"],
            f"{record['name']}{version}",
            record["alias"],
            record["digest"][:_SHORT_DIGEST],
            record["detail"],
        )
    _print(table, "no changes yet")


def print_rollouts(answer: "RolloutList") -> None:
    """Print a line for each rollout."""
    table = _table("rollout", "alias", "versions", "mode", "state", "verdict", "requests", "scored", "means", "created")
    for rollout in answer["rollouts"]:
        stable, candidate = rollout["arms"]["stable"], rollout["arms"]["candidate"]
        _add(
            table,
            rollout["id"],
            rollout["alias"],
            f"{rollout['stable_version']} → {rollout['candidate_version']}",
            f"{rollout['mode']} {rollout['percent']} %",
            rollout["state"],
            rollout["verdict"],
            f"{stable['num_requests']} + {candidate['num_requests']}",
            f"{stable['num_scored']} + {candidate['num_scored']}",
            f"{_figure(stable['mean'])} → {_figure(candidate['mean'])}",
            _time(rollout["created_s"]),
        )
    _print(table, "no rollouts; `medley adapters rollout start` begins one")


def print_rollout(rollout: "RolloutWire") -> None:
    """Print a rollout's state, its arms and its decisions."""
    alias, target = f"{rollout['adapter']}@{rollout['alias']}", rollout["candidate_version"]
    typer.echo(printable(f"{rollout['id']}: {alias}, version {target} as a {rollout['mode']}"))
    typer.echo(f"{rollout['state']}, {rollout['verdict']} in {printable(rollout['metric'])}")
    arms = _table("arm", "version", "requests", "scored", "mean", "errors", "p95")
    _add_arm(arms, "stable", rollout["stable_version"], rollout["arms"]["stable"])
    _add_arm(arms, "candidate", target, rollout["arms"]["candidate"])
    _print(arms, "")
    decisions = _table("time", "by", "decision", "reason")
    for decision in rollout["decisions"]:
        _add(decisions, _time(decision["at_s"]), decision["by"], decision["action"], decision["reason"])
    _print(decisions, "")


def _add_arm(table: Table, arm: str, version: int, figures: "ArmWire") -> None:
    error_rate = figures["error_rate"]
    _add(
        table,
        arm,
        str(version),
        str(figures["num_requests"]),
        str(figures["num_scored"]),
        _figure(figures["mean"]),
        "" if error_rate is None else f"{error_rate:.1%}",
        "" if figures["p95_e2e_ms"] is None else f"{figures['p95_e2e_ms']:.0f} ms",
    )


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def print_keys(keys: Iterable["ApiKey"], now_s: float) -> None:
    """Print a line for each API key; no secret is known here."""
    table = _table(
        "key id", "name", "state", "scopes", "adapters", "per minute", "at once", "first priority", "created", "expires"
    )
    for key in keys:
        _add(
            table,
            key.key_id,
            key.name,
            key_state(key, now_s),
            " ".join(sorted(key.scopes)),
            " ".join(key.patterns),
            str(key.max_requests_per_minute or "any"),
            str(key.max_concurrent or "any"),
            str(key.first_priority),
            _time(key.created_s),
            _time(key.expires_s) if key.expires_s else "never",
        )
    _print(table, "no keys; `medley keys create` makes one")


def key_state(key: "ApiKey", now_s: float) -> str:
    """Return ``valid``, ``revoked`` or ``expired``."""
    if key.revoked_s:
        return "revoked"
    return "expired" if key.expires_s and key.expires_s <= now_s else "valid"


def print_summary(answer: Mapping[str, object]) -> None:
    """Print a summary with its facts."""
    table = Table(show_header=False)
    for key in ("summary", "request_id", "finish_reason"):
        _add(table, key, str(answer.get(key, "")))
    adapters = answer.get("adapters")
    if isinstance(adapters, list):
        _add(table, "adapters", " + ".join(f"{use['name']}:{use['version']}" for use in adapters) or "base")
    for key in ("usage", "timings", "scores"):
        figures = answer.get(key)
        for name, value in figures.items() if isinstance(figures, Mapping) else ():
            _add(table, str(name), f"{value:.1f}" if isinstance(value, float) else str(value))
    _print(table, "")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], when_empty: str) -> None:
    """Print rows of texts under their columns, or one line where there are no rows."""
    table = _table(*columns)
    for row in rows:
        _add(table, *row)
    _print(table, when_empty)


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _print(table: Table, when_empty: str) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    if table.row_count:
        console.print(table)
    else:
        typer.echo(when_empty)


def _aliases(adapter: "AdapterWire") -> str:
    return " ".join(f"{alias}→{version}" for alias, version in sorted(adapter["aliases"].items()))


def _time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"
