"""API keys: made, checked, revoked, seen by others, on SQLite and on PostgreSQL."""

import hashlib
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from adapters.database import open_database
from adapters.errors import StoreError
from adapters.registry import Registry
from adapters.registry_records import Change
from server.access import schema
from server.access.keys import ApiKey, KeyRing
from server.core.errors import InvalidArgumentError, NotFoundError, UnauthenticatedError
from server.core.principal import Scope
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.registry import Clock
from tests.unit.server.access.conftest import OpenRing

ANNA = Change("cli:anna", "10.0.0.7")


def make(ring: KeyRing, name: str = "ci", **fields: Any) -> tuple[str, ApiKey]:
    return ring.create(name, **{"scopes": {Scope.INFER}, "change": ANNA, **fields})


def test_token_of_a_key_is_the_key_with_all_its_fields(ring: KeyRing, open_ring: OpenRing, clock: Clock) -> None:
    token, key = make(
        ring,
        "Team A, ünïcode",
        scopes={Scope.READ, Scope.INFER},
        patterns=("team-a-*", "shared"),
        max_requests_per_minute=60,
        max_concurrent=4,
        first_priority=-1,
        expires_s=clock.now_s + 10,
    )
    assert (key.name, key.scopes) == ("Team A, ünïcode", {Scope.READ, Scope.INFER})
    assert (key.patterns, key.max_requests_per_minute, key.max_concurrent) == (("team-a-*", "shared"), 60, 4)
    assert key.first_priority == -1
    assert (key.created_s, key.expires_s, key.revoked_s) == (clock.now_s, clock.now_s + 10, None)
    for other in (ring, open_ring()):
        assert other.authenticate(token) == key
        assert other.list() == (key,)
        assert other.find(key.key_id) == key


def test_token_has_128_random_bits_at_least_and_none_is_like_another(ring: KeyRing) -> None:
    tokens = [make(ring)[0] for _ in range(20)]
    secrets = {token.split("_")[2] for token in tokens}
    assert len(secrets) == 20
    assert all(token.startswith("mdl_") and len(bytes.fromhex(token.split("_")[2])) * 8 >= 128 for token in tokens)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
        lambda token: token.upper(),
        lambda token: token + "0",
        lambda token: token[:-1],
        lambda token: "mdl_" + "0" * 12 + token[16:],
        lambda token: token[:16] + "_" + "é" * 48,
        lambda token: token.replace("_", "-"),
        lambda token: "x" * 10_000,
        lambda token: "",
        lambda token: token.split("_")[2],
        lambda token: "mdl_" + hashlib.sha256(token.encode()).hexdigest(),
    ],
)
def test_token_that_differs_is_refused(local_ring: KeyRing, spoil: Any) -> None:
    token, _ = make(local_ring)
    with pytest.raises(UnauthenticatedError, match="not valid"):
        local_ring.authenticate(spoil(token))


def test_hash_from_the_database_is_no_token(ring: KeyRing, database_url: str) -> None:
    token, key = make(ring)
    with opened(database_url) as writer, writer.begin() as connection:
        rows = [str(row) for row in connection.execute(schema.API_KEYS.select())]
    secret = token.split("_")[2]
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert digest in rows[0]
    assert secret not in rows[0]
    with pytest.raises(UnauthenticatedError):
        ring.authenticate(f"mdl_{key.key_id}_{digest[:48]}")


def test_key_is_refused_from_the_moment_it_expires(ring: KeyRing, clock: Clock) -> None:
    token, _ = make(ring, expires_s=clock.now_s + 10)
    clock.now_s += 9.9
    ring.authenticate(token)
    clock.now_s += 0.1
    with pytest.raises(UnauthenticatedError, match="expired"):
        ring.authenticate(token)


def test_revoked_key_is_refused_and_others_are_not(ring: KeyRing, clock: Clock) -> None:
    token, key = make(ring)
    other, _ = make(ring)
    clock.now_s += 5
    assert ring.revoke(key.key_id, ANNA) == replace(key, revoked_s=clock.now_s)
    with pytest.raises(UnauthenticatedError, match="revoked"):
        ring.authenticate(token)
    ring.authenticate(other)


def test_key_revoked_twice_keeps_its_time_and_has_one_audit_row(ring: KeyRing, clock: Clock, database_url: str) -> None:
    _, key = make(ring)
    revoked = ring.revoke(key.key_id, ANNA)
    clock.now_s += 5
    assert ring.revoke(key.key_id, ANNA) == revoked
    assert [row.action for row in _audit(database_url)] == ["revoke_key", "create_key"]


def test_unknown_key_cannot_be_revoked(ring: KeyRing) -> None:
    with pytest.raises(NotFoundError):
        ring.revoke("0" * 12, ANNA)


def test_changes_of_keys_are_in_the_audit_log_without_secrets(ring: KeyRing, database_url: str) -> None:
    token, key = make(ring, patterns=("a-*",))
    row = _audit(database_url)[0]
    assert (row.who, row.origin, row.action, row.name) == ("cli:anna", "10.0.0.7", "create_key", "")
    assert key.key_id in row.detail
    assert "infer" in row.detail
    assert "a-*" in row.detail
    assert token.split("_")[2] not in str(row)


def test_changes_of_another_process_act_after_refresh(open_ring: OpenRing) -> None:
    ours, theirs = open_ring(), open_ring()
    token, key = make(theirs)
    with pytest.raises(UnauthenticatedError):
        ours.authenticate(token)
    ours.refresh()
    ours.authenticate(token)
    theirs.revoke(key.key_id, ANNA)
    ours.authenticate(token)
    ours.refresh()
    with pytest.raises(UnauthenticatedError, match="revoked"):
        ours.authenticate(token)


def test_own_change_shows_what_others_changed_before(open_ring: OpenRing) -> None:
    ours, theirs = open_ring(), open_ring()
    token, _ = make(theirs)
    make(ours)
    ours.authenticate(token)


def test_any_keys_stays_true_when_the_last_is_revoked(ring: KeyRing, open_ring: OpenRing) -> None:
    assert not ring.any_keys
    _, key = make(ring)
    assert ring.any_keys
    ring.revoke(key.key_id, ANNA)
    assert ring.any_keys
    assert open_ring().any_keys


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"scopes": set()}, "scopes"),
        ({"patterns": ()}, "patterns"),
        ({"patterns": ("a", "Team")}, "patterns"),
        ({"patterns": ("[ab]",)}, "patterns"),
        ({"patterns": ("x" * 64,)}, "patterns"),
        ({"patterns": ("x",) * 65}, "patterns"),
        ({"max_requests_per_minute": -1}, "max_requests_per_minute"),
        ({"max_concurrent": 2**40}, "max_concurrent"),
        ({"first_priority": -3}, "first_priority"),
        ({"expires_s": 5.0}, "expires_s"),
        ({"expires_s": float("nan")}, "expires_s"),
        ({"expires_s": float("inf")}, "expires_s"),
    ],
)
def test_key_out_of_range_is_not_made(local_ring: KeyRing, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        make(local_ring, **fields)
    assert caught.value.param == param
    assert not local_ring.any_keys


def test_secret_is_in_no_log_error_or_repr(ring: KeyRing, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token, key = make(ring)
    ring.refresh()
    ring.authenticate(token)
    ring.revoke(key.key_id, ANNA)
    with pytest.raises(UnauthenticatedError) as caught:
        ring.authenticate(token)
    secret = token.split("_")[2]
    digest = hashlib.sha256(secret.encode()).hexdigest()
    said = [caplog.text, repr(caught.value), repr(key), repr(ring.list()), repr(ring)]
    assert not [text for text in said if secret in text or digest in text]


def test_keys_are_known_on_while_the_database_is_away(postgres_server: PostgresServer) -> None:
    name = postgres_server.make_database()
    ring = KeyRing(postgres_server.url(name))
    token, key = make(ring)
    postgres_server.shut(name)
    with pytest.raises(StoreError):
        ring.refresh()
    with pytest.raises(StoreError):
        make(ring)
    assert ring.authenticate(token) == key
    assert ring.list() == (key,)
    postgres_server.open(name)
    ring.refresh()
    make(ring)
    ring.close()
    postgres_server.drop_database(name)


def test_migrations_make_the_tables_the_code_describes(ring: KeyRing, database_url: str) -> None:
    with opened(database_url) as writer, writer.connect() as connection:
        ours = MigrationContext.configure(connection, opts={"include_name": _is_ours})
        assert compare_metadata(ours, schema.METADATA) == []


def test_migrations_go_down_and_up_again(database_url: str, open_ring: OpenRing) -> None:
    make(open_ring())
    with opened(database_url) as writer, writer.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(schema.SCRIPTS))
        config.set_main_option("path_separator", "os")
        config.attributes.update(connection=connection, version_table=schema.VERSION_TABLE)
        command.downgrade(config, "base")
        assert not [name for name in sa.inspect(connection).get_table_names() if name.startswith("api_")]
    again = open_ring()
    assert not again.any_keys
    make(again)


def test_migrations_lie_in_packages_so_that_they_are_installed() -> None:
    assert all((folder / "__init__.py").is_file() for folder in (schema.SCRIPTS, schema.SCRIPTS / "versions"))


def test_ring_and_registry_share_one_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    registry = Registry(url)
    with closing(KeyRing(url)) as ring:
        make(ring)
    registry.close()
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"api_keys", "api_keys_counter", "access_revision", "audit", "alembic_version"} <= names


def _audit(database_url: str) -> Any:
    registry = Registry(database_url)
    try:
        return registry.audit(limit=10)
    finally:
        registry.close()


@contextmanager
def opened(url: str) -> Iterator[sa.Engine]:
    reader, writer = open_database(url, schema.SCRIPTS, schema.VERSION_TABLE)
    try:
        yield writer
    finally:
        reader.dispose()


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in schema.METADATA.tables
